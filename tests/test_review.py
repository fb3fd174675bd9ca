"""Reviews: decisions are on disk before the next pair is shown, survive a new audit, and are undone line by line."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demeanor.audit import audit_pairs
from demeanor.curate import Settings, curate_pairs
from demeanor.curate.decisions import Decision, append_decision, read_decisions
from demeanor.curate.edit import from_text, to_text
from demeanor.curate.mend import mend
from demeanor.curate.review import Flagged, checks_of, flagged_pairs, found_before, review
from demeanor.errors import InputError, RunFolderError
from demeanor.pairs import PairStore, read_pairs
from demeanor.records import Message, PreferencePair
from demeanor.visible import on_terminal
from tests.test_curate import kept, lines, plain_rows, rows_to

MAIL = "Write to ann@example.com then."


def flagged_rows(count: int = 6, others: int = 40) -> list[dict[str, Any]]:
    """Rows 1 to `count` hold an e-mail address in the chosen reply."""
    rows = plain_rows(others + count)
    return [{**row, "chosen": f"{row['chosen']} {MAIL}"} if at < count else row for at, row in enumerate(rows)]


def pair_of(prompt: str = "Hi?", chosen: str = "good", rejected: str = "bad") -> PreferencePair:
    return PreferencePair.make((Message("user", prompt),), chosen, rejected, source="p.jsonl", row=1)


class Keys:
    """A screen whose keys are given, and what was shown on it."""

    def __init__(self, keys: str, **edits: str) -> None:
        self.keys, self.edits = list(keys), edits
        self.shown: list[int] = []
        self.said: list[str] = []

    def show(self, item: Flagged, number: int, total: int) -> None:
        self.shown.append(number)

    def say(self, line: str) -> None:
        self.said.append(line)

    def key(self) -> str:
        return self.keys.pop(0) if self.keys else ""

    def edit(self, pair: PreferencePair) -> dict[str, str]:
        return self.edits


def items(count: int) -> list[Flagged]:
    return [Flagged(pair_of(f"Question {number}?"), (("warns", "x.y", "z"),)) for number in range(count)]


def standing(file: Path) -> list[str]:
    return [decision.decision for decision in read_decisions(file).values()]


def test_each_key_does_its_work_and_undo_goes_back(tmp_path: Path) -> None:
    file, screen = tmp_path / "decisions.jsonl", Keys("uk d?n uu s k q".replace(" ", ""))
    counts = review(items(5), file, screen)
    assert screen.shown == [1, 2, 3, 4, 3, 2, 3, 4]
    assert screen.said == ["nothing to undo here", "k keep, d drop, s swap, e edit, n next, u undo, q quit"]
    assert standing(file) == ["keep", "swap", "keep"]
    assert counts == {"keep": 2, "swap": 1}
    assert [row["decision"] for row in lines(file)] == ["keep", "drop", "undo", "swap", "keep"]


def test_an_edit_that_would_be_no_pair_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    for edits, fault in (
        ({"chosen": " "}, "empty reply"),
        ({"chosen": "bad\n"}, "chosen and rejected are identical"),
        ({"prompt": ""}, "empty prompt"),
        ({"chosen": "\udc80"}, "text is not valid Unicode"),
    ):
        screen = Keys("e", **edits)
        review(items(1), file, screen)
        assert screen.said == [f"that would be no pair: {fault}"]
    assert not file.exists()
    review(items(1), file, Keys("e", chosen="better"))
    assert lines(file)[0]["changed"] == {"chosen": "better"}


def test_a_killed_review_loses_no_decision_and_a_line_that_was_cut_off_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "decisions.jsonl"
    for name in ("a", "b"):
        append_decision(file, Decision(name, "drop"))
    whole = file.read_bytes()
    for cut in range(1, len(whole) // 2 - 1):
        file.write_bytes(whole[: len(whole) // 2 + cut])
        assert list(read_decisions(file)) == (["a", "b"] if cut == len(whole) // 2 - 1 else ["a"])
        append_decision(file, Decision("c", "keep"))
        assert list(read_decisions(file)) == ["a", "c"]
    file.write_bytes(whole[:-1])  # all of it but the line end, as some editors write
    assert list(read_decisions(file)) == ["a", "b"]
    append_decision(file, Decision("c", "keep"))
    assert list(read_decisions(file)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "a"}',
        '{"id": "a", "decision": "burn"}',
        '{"id": "a", "decision": ["keep"]}',
        '{"id": "a", "decision": "keep", "why": "x"}',
        '{"id": 3, "decision": "drop"}',
        '{"id": "a", "decision": "edit"}',
        '{"id": "a", "decision": "keep", "findings": "private.key"}',
        '{"id": "a", "decision": "edit", "changed": {"source": "x"}}',
        "[]",
        "nonsense",
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_decision_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(f'{{"id": "b", "decision": "keep"}}\n{line}\n')
    with pytest.raises(InputError, match=r"d.jsonl, line 2: is no decision: .* -- correct the line") as error:
        read_decisions(tmp_path / "d.jsonl")
    assert "argument" not in str(error.value)  # no words of Python's
    with pytest.raises(InputError, match="cannot be read"):
        read_decisions(tmp_path / "absent.jsonl")


def test_decisions_survive_a_new_audit_and_are_not_asked_again(tmp_path: Path) -> None:
    file, decisions = rows_to(tmp_path / "p.jsonl", flagged_rows()), tmp_path / "d.jsonl"

    def flagged(source: Path) -> list[Flagged]:
        folder = tmp_path / f"store{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        known = read_decisions(decisions) if decisions.exists() else {}
        store = PairStore.collect([source], folder)
        pairs = mend(store, known).pairs
        audit = audit_pairs(pairs, only=["private"])
        return flagged_pairs(audit.findings, audit.flags(pairs), store, known, ["private.email"])

    first = flagged(file)
    assert [item.pair.row for item in first] == [1, 2, 3, 4, 5, 6]
    review(first, decisions, Keys("dsekq", chosen="Call the desk, they know."))
    assert [item.pair.row for item in flagged(file)] == [5, 6]
    moved = rows_to(tmp_path / "other.jsonl", flagged_rows()[::-1])  # another file, another order
    assert sorted(item.pair.row for item in flagged(moved)) == [41, 42]
    settings = Settings(private="keep", balance="none", heldout=0, decisions=decisions)
    curated = curate_pairs([moved], tmp_path / "out", settings)
    left = {pair.prompt[-1].content: pair for pair in kept(tmp_path / "out")}
    raw = flagged_rows()
    assert raw[0]["prompt"] not in left
    swapped, edited, stays = (left[raw[at]["prompt"]] for at in (1, 2, 3))
    assert (swapped.chosen, swapped.rejected) == (raw[1]["rejected"], raw[1]["chosen"])
    assert (edited.chosen, edited.rejected) == ("Call the desk, they know.", raw[2]["rejected"])
    assert stays.chosen == raw[3]["chosen"]
    assert curated.notes == ["decisions: 1 kept, 1 dropped, 1 swapped, 1 edited"]
    assert curated.dropped == {"dropped in review": 1} and curated.altered == {"edited": 1, "swapped": 1}
    steps = {row["steps"][0]["how"]: row for row in lines(tmp_path / "out" / "altered.jsonl")}
    (change,) = steps["edited"]["steps"][0]["changes"]
    old, new = raw[2]["chosen"], edited.chosen
    assert old[: change["before"][0]] + new[slice(*change["after"])] + old[change["before"][1] :] == new


def test_what_a_person_kept_is_not_redacted_for_what_they_saw(tmp_path: Path) -> None:
    file, decisions = rows_to(tmp_path / "p.jsonl", flagged_rows(3)), tmp_path / "d.jsonl"
    store = PairStore.collect([file], tmp_path)
    audit = audit_pairs(store, only=["private"])
    review(flagged_pairs(audit.findings, audit.flags(store), store), decisions, Keys("kq"))
    append_decision(decisions, Decision(store[1].id, "keep", findings=["length.longer_wins"]))
    assert read_decisions(decisions)[store[0].id].findings == ["private.email"]
    settings = Settings(balance="none", heldout=0, near=0, decisions=decisions)
    for private, expected in (("redact", [MAIL, MAIL.replace("ann@example.com", "[EMAIL]")]), ("drop", [MAIL, None])):
        curate_pairs([file], tmp_path / private, replace(settings, private=private))
        left = {row["row"]: row["chosen"] for row in lines(tmp_path / private / "train.jsonl")}
        for row, text in enumerate(expected, start=1):
            assert left[row].endswith(text) if text else row not in left


def test_what_is_asked_about(tmp_path: Path) -> None:
    rows = flagged_rows(3)
    rows[1]["chosen"] += " The key is sk-ant-a8f3k2l9x7c6v5b4n3m2q1w0e9r8t7y6."
    rows += [rows[0]]
    store = PairStore.collect([rows_to(tmp_path / "p.jsonl", rows)], tmp_path)
    audit = audit_pairs(store, only=["private"])
    asked = flagged_pairs(audit.findings, audit.flags(store), store)
    assert [item.pair.row for item in asked] == [2, 1, 3]  # a key blocks
    assert [(name, severity) for severity, name, _ in asked[0].found] == [
        ("private.key", "blocks"),
        ("private.email", "warns"),
    ]
    assert [item.copies for item in asked] == [1, 2, 1]
    assert checks_of(["private.email", "shape", "private"]) == ["private", "shape"]
    with pytest.raises(InputError, match=r"--only: no check is called 'privat\.email'; did you mean private"):
        checks_of(["privat.email"])


def test_findings_of_a_folder_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"flagged\.jsonl"):
        found_before(tmp_path)
    (tmp_path / "flagged.jsonl").write_text('{"id": "a", "findings": ["x.y"]}\n')
    (tmp_path / "findings.json").write_text('{"findings": [{"check": "x"}]}')
    with pytest.raises(RunFolderError, match=r"findings\.json: holds no findings -- audit the pairs again"):
        found_before(tmp_path)


@pytest.mark.parametrize(
    "text", ["plain", "", "a\nb\n", "\n=== chosen\nhello", "==== rejected\n=====", "line\r\nbreak\r\n"]
)
def test_a_pair_as_text_and_back(text: str) -> None:
    pair = pair_of(text or "Hi?", f"x{text}", f"{text}y")
    assert from_text(to_text(pair), pair) == {}
    edited = to_text(pair).replace(f"x{text}\n", f"x{text}!\n")
    assert from_text(edited, pair) == {"chosen": f"x{text}!"}
    with pytest.raises(ValueError, match="marks"):
        from_text(to_text(pair).replace(" rejected\n", " rejectd\n", -1), pair)


def test_hostile_text_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b1m over\rwritten\u202egnp.exe \u200b\r\nnext"
    shown = on_terminal(hostile)
    assert not set(shown) & set("\x1b\x07\x9b\r\u202e\u200b")
    assert "⟨U+001B⟩" in shown and "⟨U+000D⟩" in shown and shown.endswith("\nnext")


# with a terminal


def _in_its_own_terminal() -> None:
    """Ctrl-C goes to it, and ends it even where a shell started the tests in the background, which ignores SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`demeanor review` in a pseudo-terminal of its own."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self.screen, inner = pty.openpty()
        plain = {key: value for key, value in os.environ.items() if key not in ("VISUAL", "EDITOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demeanor", "review", *arguments],
            stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            preexec_fn=_in_its_own_terminal,
            env={**plain, "TERM": "xterm", "COLUMNS": "120", **environment},
        )  # fmt: skip
        os.close(inner)
        self.text = ""

    def until(self, wanted: str) -> str:
        """What is shown up to `wanted`."""
        end = time.monotonic() + 120
        while wanted not in self.text:
            assert time.monotonic() < end, self.text
            assert self._read(), f"ended before {wanted!r}: {self.text}"
        shown, _, self.text = self.text.partition(wanted)
        return shown

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(60)

    def _read(self) -> bool:
        if not select.select([self.screen], [], [], 60)[0]:
            return False
        try:
            data = os.read(self.screen, 65536)
        except OSError as error:
            assert error.errno == errno.EIO  # Linux: nobody is left on the other side
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture
def set_of_six(tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    rows = flagged_rows()
    rows[0]["chosen"] += " \x1b[31mred\x1b]0;title\x07 alert"
    yield str(rows_to(tmp_path / "p.jsonl", rows)), "--decisions", tmp_path / "d.jsonl"


def start(set_of_six: tuple[str, str, Path], *more: str, **environment: str) -> Terminal:
    return Terminal([*map(str, set_of_six), "--only", "private.email", *more], **environment)


def test_in_a_terminal_keys_are_taken_at_once_and_the_review_goes_on_later(
    set_of_six: tuple[str, str, Path], tmp_path: Path
) -> None:
    decisions = set_of_six[2]
    terminal = start(set_of_six)
    terminal.until("1 of 6")
    shown = terminal.until("q quit")
    assert MAIL in shown and "⟨U+001B⟩[31mred⟨U+001B⟩]0;title⟨U+0007⟩ alert" in shown and "\x1b[31mred" not in shown
    terminal.type("d")
    terminal.until("2 of 6")
    assert standing(decisions) == ["drop"]  # before the next pair was shown
    terminal.type("\x1b[A")  # an arrow is no decision
    terminal.until("k keep, d drop")
    terminal.type("s")
    terminal.until("3 of 6")
    terminal.type("u")
    terminal.until("2 of 6")
    terminal.type("kk")  # typed ahead: nothing is lost
    terminal.until("4 of 6")
    os.killpg(terminal.process.pid, signal.SIGKILL)
    assert terminal.end() == -signal.SIGKILL
    assert standing(decisions) == ["drop", "keep", "keep"]
    subprocess.run(
        [sys.executable, "-m", "demeanor", "audit", set_of_six[0], "--out", str(tmp_path / "audit")],
        capture_output=True,
    )
    again = start(set_of_six, "--findings", str(tmp_path / "audit"))
    again.until("1 of 3")
    again.type("nq")
    again.until("3 of 3 pairs are undecided")
    assert again.end() == 0
    assert len(lines(decisions)) == 5


def test_in_a_terminal_pairs_are_edited_with_and_without_an_editor(
    set_of_six: tuple[str, str, Path], tmp_path: Path
) -> None:
    decisions = set_of_six[2]
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import pathlib, sys\nassert sys.stdin.isatty()\nfile = pathlib.Path(sys.argv[1])\n"
        f"file.write_text(file.read_text().replace({MAIL!r}, 'Ask at the desk.\\nAny desk.'))\n"
    )
    terminal = start(set_of_six, EDITOR=f"{sys.executable} {editor}")
    terminal.until("q quit")
    terminal.type("e")
    terminal.until("2 of 6")
    terminal.type("q")
    assert terminal.end() == 0
    terminal = start(set_of_six)
    terminal.until("1 of 5")
    terminal.type("e")
    terminal.until("prompt: ")
    terminal.type("\n")
    terminal.until("chosen: ")
    terminal.type("One.\\nTwo ä.\n")
    terminal.until("rejected: ")
    terminal.type("\n")
    terminal.until("2 of 5")
    terminal.type("\x03")  # Ctrl-C
    assert terminal.end() == 130
    first, second = (decision.changed for decision in read_decisions(decisions).values())
    assert set(first) == {"chosen"} and "Ask at the desk.\nAny desk." in first["chosen"]
    assert second == {"chosen": "One.\nTwo ä."}


def test_a_review_needs_a_terminal_and_an_audit_takes_the_decisions(
    set_of_six: tuple[str, str, Path], tmp_path: Path
) -> None:
    source, _, decisions = set_of_six
    command = [sys.executable, "-m", "demeanor"]
    refused = subprocess.run([*command, "review", source], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "needs a terminal" in refused.stderr
    for pair in read_pairs(source).pairs[:4]:
        append_decision(decisions, Decision(pair.id, "drop"))
    append_decision(decisions, Decision("0" * 16, "keep"))
    options = ["--decisions", str(decisions), "--only", "private", "--json", "--out", str(tmp_path / "audit")]
    done = subprocess.run([*command, "audit", source, *options], capture_output=True, text=True)
    assert "decisions: 4 dropped, 1 about no pair here" in done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["num_pairs"] == 2 and [row["row"] for row in finding["examples"]] == [5, 6]
