"""YAML text as data that knows its lines, and `--set` texts that win over it.

Safe loading only; a key that stands twice, a text that is no YAML, and anchors that multiply without end are refused
in one line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from demeanor.errors import ContractError, one_line


class Loader(yaml.SafeLoader):
    """YAML's safe loader, but 1e-4 is a number and a date is text."""


class Dumper(yaml.SafeDumper):
    """Quotes the texts that `Loader` would read as numbers."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (Loader, Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )

Dumper.add_representer(  # PyYAML folds a "next line" character that is not escaped
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None),
)

# what PyYAML raises, also for texts such as 0x_, !!bool maybe, or a thousand brackets
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
_MAX_VALUES = 100_000


def read_yaml(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """The data, and the tree of nodes that knows the lines."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        _check_nodes(node, where)
        return (None if node is None else loader.construct_document(node)), node
    except _NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise ContractError(f"not YAML: {problem}", where=where + line) from None


def _check_nodes(root: yaml.Node | None, where: str) -> None:
    """Refuse a key that stands twice or is not text, and anchors that hold themselves or multiply without end."""
    waiting, num_values = [root], 0
    while waiting:
        node, num_values = waiting.pop(), num_values + 1
        if num_values > _MAX_VALUES:
            raise ContractError(
                f"holds more than {_MAX_VALUES:,} values", where=where, remedy="look at its anchors (&)"
            )
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                shown = one_line(key.value, 60)
                if not isinstance(key, yaml.ScalarNode) or key.tag not in _KEY_TAGS:
                    raise ContractError(
                        f"the key {shown} is not text", where=f"{where}, line {line}", remedy="put it in quotes"
                    )
                if key.value in seen:
                    raise ContractError(
                        f"the key {shown} stands twice",
                        where=f"{where}, line {line}",
                        remedy=f"the first is in line {seen[key.value]}",
                    )
                seen[key.value] = line
                waiting.append(value)
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def _unshared(data: Any) -> Any:
    """A copy in which no two places are the same list or dict, as an anchor makes them."""
    if isinstance(data, dict):
        return {key: _unshared(value) for key, value in data.items()}
    return [_unshared(item) for item in data] if isinstance(data, list) else data


def _override_path(item: str) -> list[str]:
    return [part.strip() for part in item.partition("=")[0].split(".")]


@dataclass(frozen=True)
class Source:
    """Where the keys come from: a file with its YAML nodes, and overrides that win over it."""

    where: str
    node: yaml.Node | None
    overrides: tuple[str, ...]

    def at(self, path: tuple[Any, ...]) -> str:
        """The override that set `path`, or `where, line N` of the deepest node of `path` that exists."""
        names = [str(part) for part in path]
        for item in reversed(self.overrides):
            key = _override_path(item)
            if names[: len(key)] == key:
                return f"--set {item}"
        line, node = None, self.node
        for part in path:
            found = None
            if isinstance(node, yaml.MappingNode):
                for key_node, value_node in node.value:
                    if key_node.value == str(part):
                        found, line = value_node, key_node.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = node.value[part]
                line = found.start_mark.line + 1
            if found is None:
                break
            node = found
        return f"{self.where}, line {line}" if line else self.where


def apply_overrides(data: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """A copy of `data` with each `a.b.c=value` set; values are read as YAML."""
    data = _unshared(data)
    for item in overrides:
        path, raw = _override_path(item), item.partition("=")[2]
        if "=" not in item or not all(path):
            raise ContractError(f"cannot read {item!r}", where="--set", remedy="write it as key.key=value")
        target = data
        for parent in path[:-1]:
            if target.get(parent) is None:  # a section that is not there, or that is empty
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise ContractError(f"{parent} is not a section", where=f"--set {item}")
        try:
            value = yaml.load(raw, Loader=Loader)
        except _NOT_YAML:
            value = raw
        is_text = isinstance(value, dict) and not raw.strip().startswith("{")  # "Note: closed"
        target[path[-1]] = raw.strip() if is_text else value
    return data
