"""What pydantic refuses, in one line: the key's path, its line, and the nearest right key or word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from demeanor.errors import ContractError, one_line
from demeanor.settings import Source


def fault(text: str, *path: str | int) -> PydanticCustomError:
    """To be raised by a validator: a fault of the key `path` below the section that is being checked."""
    return PydanticCustomError("contract", "{text}", {"text": text, "path": path})


def describe(error: ValidationError, data: dict[str, Any], source: Source, root: type[BaseModel]) -> ContractError:
    """The first fault of `error`, but a key that is misspelt before the one that is missing for it.

    Args:
        data: what was refused.
        root: the whole contract's model, whose keys are the right ones.
    """
    faults = error.errors()
    first = next((item for item in faults if item["type"] == "extra_forbidden"), faults[0])
    path = _real_path((*first["loc"], *first.get("ctx", {}).get("path", ())), data, missing=first["type"] == "missing")
    given, name = first.get("input"), _dotted(path)
    shown = "" if isinstance(given, dict | list) else ", but it is empty" if given is None else f", not {given!r}"
    shown = one_line(shown, 70)
    remedy = ""
    if first["type"] == "extra_forbidden":
        message = f"unknown key {name}{nearest_key(str(path[-1]), _keys_at(path[:-1], root), root)}"
    elif first["type"] == "missing":
        message = f"{name} is missing"
    elif first["type"] == "contract":
        message = f"{name}: {first['msg']}"
    elif first["type"] in _IN_OUR_WORDS:
        message = f"{name}: must be {_IN_OUR_WORDS[first['type']]}{shown}"
        if first["type"] == "string_type" and given is not None and not isinstance(given, dict | list):
            remedy = "put it in quotes"
    else:
        text = first["msg"].removeprefix("Value error, ")
        message = f"{name}: {text[0].lower()}{text[1:]}{shown}"
        if first["type"] == "literal_error":
            expected = str(first.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ").split(", ")
            message += nearest(str(given), expected)
    # a value that could be of several kinds has a fault for each
    more = len({_real_path(item["loc"], data) for item in faults}) - 1
    return ContractError(message + (f" (and {more} more)" if more else ""), where=source.at(path), remedy=remedy)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean ...?`, or nothing when no known word is near."""
    best = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {best[0]}?" if best else ""


def nearest_key(word: str, known: Iterable[str], root: type[BaseModel]) -> str:
    """`nearest`, but a key that is right in another section of `root` is named with it."""
    for name, field in root.model_fields.items():
        if word in getattr(field.annotation, "model_fields", ()):
            return f"; did you mean {name}.{word}?"
    return f"; did you mean {word}, outside this section?" if word in root.model_fields else nearest(word, known)


_IN_OUR_WORDS = {
    "string_type": "text",
    "string_unicode": "text without half characters",
    "string_too_short": "some text",
    "too_short": "a list with at least one item",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
}


def _real_path(loc: tuple[Any, ...], data: Any, *, missing: bool = False) -> tuple[Any, ...]:
    """`loc` without what pydantic adds to it and is no key of `data`, such as the kinds of a union."""
    path = []
    for part in loc:
        try:
            data = data[part]
        except (LookupError, TypeError):
            if not missing:
                continue
        path.append(part)
    return tuple(path)


def _dotted(path: tuple[Any, ...]) -> str:
    return one_line(".".join(map(str, path)), 120) or "the contract"


def _keys_at(path: tuple[Any, ...], root: Any) -> list[str]:
    """The keys that are allowed at `path`: a name leads to a section's field, then an id or a place to its item."""
    for part in path:
        fields = getattr(root, "model_fields", None)
        root = fields[part].annotation if fields else next(k for k in get_args(root) if hasattr(k, "model_fields"))
    return list(root.model_fields)
