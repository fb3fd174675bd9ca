"""A room imports only rooms above it: the file list reads as the pipeline."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import demeanor

SOURCE = Path(demeanor.__file__).parent
ORDER = (
    "errors", "visible", "records", "settings", "faults", "objectives", "trl_options", "sections", "endpoint",
    "judge_settings", "attack_settings", "promises", "reward_settings", "training_settings", "contract", "lock",
    "workspace", "progress", "statistics", "significance", "prevalence", "model", "tokens", "pairs", "audit", "curate",
    "attacks", "judges", "train", "measure", "prove", "report", "release", "starter", "probing", "plan",
    "keep", "pipeline", "compare", "sweep", "cli", "__main__",
)  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "demeanor" else [f"demeanor.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("demeanor.")}
    return found - {"__version__"}


def test_every_file_has_a_room() -> None:
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert rooms == set(ORDER)


def test_the_readme_names_every_room_and_the_files_of_the_largest() -> None:
    readme = (SOURCE.parents[1] / "README.md").read_text("utf-8")
    named = set(re.findall(r"^ {6,8}([\w.]+)/? ", readme, re.MULTILINE))
    files = {path.name for path in [*SOURCE.glob("*.py"), *SOURCE.glob("train/*.py"), *SOURCE.glob("measure/*.py")]}
    assert files - {"__init__.py", "__main__.py"} <= named
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} <= named


def test_imports_go_up() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        wrong += [
            f"{path.relative_to(SOURCE)} imports {other}"
            for other in imports_of(path)
            if ORDER.index(other) > ORDER.index(room)
        ]
    assert not wrong


def test_records_and_errors_import_nothing_of_ours() -> None:
    assert imports_of(SOURCE / "records.py") == set()
    assert imports_of(SOURCE / "errors.py") == set()


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['demeanor', '--help']\n"
        "from demeanor.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'transformers', 'trl', 'datasets', 'numpy', 'scipy', 'pandas', 'altair', 'peft', 'pydantic'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]"), out.stdout[-300:]


def test_public_surface() -> None:
    for name in demeanor.__all__:
        assert getattr(demeanor, name) is not None
    import_module("demeanor.prove")  # a room must not hide a verb
    assert callable(demeanor.prove_contract)
