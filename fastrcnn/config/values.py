"""Convert values of keys from text or plain data to their declared types, and back to text."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastrcnn.errors import UserError, nearest

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LONGEST_NAME = 150  # bytes; file systems allow 255, and times, numbers and suffixes are appended
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
ELEMENT = re.compile(r"""\s*('[^']*'|"[^"]*"|[^,]*?)\s*(?:,|$)""")  # an element of a list and its comma
SCALARS = {
    int: re.compile(r"[+-]?[0-9]{1,30}"),
    float: NUMBER,
    bool: re.compile(r"true|false|yes|no|on|off", re.IGNORECASE),
}


def fill(schema: type, values: Any, prefix: str = "") -> Any:
    """Create an instance of a schema from plain data (from a file or from Hydra). `${...}` is not resolved.

    Missing keys keep their defaults. prefix: the name of the group and a dot, for messages. Raises UserError for an
    unknown key, and for a value that has the wrong type, is out of bounds, or is not one of the allowed values.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{prefix.removesuffix('.') or 'configuration'}: must be a mapping of keys to values, not {_shown(values)}."
        )
    hints, known = get_type_hints(schema), {f.name: f for f in fields(schema)}
    taken = {}
    for name, value in values.items():
        where, hint = f"{prefix}{str(name)[:60]}", hints.get(name)
        if hint is None:
            raise UserError(f"unknown key '{where}'.{nearest(str(name)[:60], hints)}")
        if is_dataclass(hint):
            taken[name] = fill(hint, value, f"{where}.")  # type: ignore[arg-type]
        else:
            taken[name] = as_type(where, value, hint)
            check_bounds(where, taken[name], known[name].metadata)
    return schema(**taken)


def parts(hint: Any) -> tuple[Any, bool, bool]:
    """Return the type of a key (for a list, of the elements), whether it is a list, and whether null is allowed."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    many = get_origin(kinds[0]) is list
    return (get_args(kinds[0])[0] if many else kinds[0]), many, type(None) in kinds


def as_type(key: str, value: Any, hint: Any) -> Any:
    """Convert a value from a file to the type of its key (`str | None`, `list[int]`, ...).

    Raises UserError if the value cannot be converted.
    """
    kind, many, optional = parts(hint)
    if value is None and optional:
        return None
    if many:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{key}: must be a list, not {_shown(value)}.")
        return [as_type(key, element, kind) for element in value]
    if get_origin(kind) is Literal:
        return one_of(key, value, get_args(kind))
    if (
        kind is float and isinstance(value, str) and NUMBER.fullmatch(value)
    ):  # YAML reads 1e-3, without a decimal point, as text
        return float(value)
    if kind in (float, str) and type(value) is int and abs(value) < 2**63:
        return kind(value)
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        what = "less than 2^63 in magnitude" if type(value) is int and kind in (int, float) else WORDS[kind]
        raise UserError(f"{key}: must be {what}, not {_shown(value)}.")
    return value


def one_of(key: str, value: Any, known: Collection[str]) -> str:
    """Return the value if it is one of the `known` values; otherwise raise UserError."""
    if not isinstance(value, str) or value not in known:
        shown = value[:60] if isinstance(value, str) else _shown(value)
        which = f"one of {', '.join(known)}" if len(known) > 1 else ", ".join(known)
        raise UserError(f"{key}={shown}: must be {which}.{nearest(shown, known)}")
    return value


def _shown(value: Any) -> str:
    """Return the first 60 characters of a value in quotes, for a message. For a list or dict, return only its type."""
    return type(value).__name__ if isinstance(value, (list, dict, tuple)) else f"{str(value)[:60]!r}"


def check_bounds(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Raise UserError for a value that is outside the bounds of its key, which settings.key declares."""
    if bounds["some"] and value == []:
        raise UserError(f"{key} is empty. Give at least one value.")
    if bounds["in_path"]:
        check_name(key, value)
    shown = str(value).removesuffix(".0")
    each = "each element " if isinstance(value, list) else ""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{key}={shown}: {each}must be a finite number.")
        if not isinstance(number, (int, float)):
            continue
        if bounds["above"] is not None and number <= bounds["above"]:
            raise UserError(f"{key}={shown}: {each}must be greater than {bounds['above']}.")
        if bounds["least"] is not None and number < bounds["least"]:
            raise UserError(f"{key}={shown}: {each}must be at least {bounds['least']}.")
        if bounds["most"] is not None and number > bounds["most"]:
            raise UserError(f"{key}={shown}: {each}must be at most {bounds['most']}.")


def check_name(key: str, value: str) -> None:
    """Raise UserError for a value that cannot be used in the name of a file or folder."""
    if value in ("", ".", "..") or any(letter in "/\\" or not letter.isprintable() for letter in value):
        raise UserError(
            f"{key}={value!r}: this value is used in file and folder names. It must not be empty, '.' or '..', and "
            "must not contain /, \\ or control characters."
        )
    if len(value.encode(errors="surrogateescape")) > LONGEST_NAME:
        raise UserError(
            f"{key}={value[:20]}...: this value is used in file and folder names and must not exceed {LONGEST_NAME} "
            "bytes."
        )


def for_hydra(name: str, text: str, hint: Any) -> str:
    """Convert the text of an argument to Hydra's grammar. Text values are quoted, so every path and name is accepted.

    name, hint: the key and its declared type. Raises UserError if the value has another type or is not allowed.
    """
    kind, many, optional = parts(hint)
    if text in ("null", "") and optional:
        return "null"
    if many and text.startswith("[") and text.endswith("]"):
        elements = [m[1] for m in ELEMENT.finditer(text[1:-1].strip()) if m[0]]
        return f"[{', '.join(for_hydra(name, element, kind) for element in elements)}]"
    if many and kind is not str and "," in text:
        raise UserError(f"{name}={text}: must be a list, such as {name}=[{text}].")
    if many:  # a list with one element
        return f"[{for_hydra(name, text, kind)}]"
    if get_origin(kind) is Literal:
        return one_of(name, text, get_args(kind))
    if kind is str:
        return quote(text)
    if not SCALARS[kind].fullmatch(text):
        raise UserError(f"{name}: must be {WORDS[kind]}, not '{text}'.")
    if kind is bool:
        return as_written(text.lower() in ("true", "yes", "on"))
    return str(int(text)) if kind is int else text  # Hydra reads 007 as text


def quote(value: str) -> str:
    """Quote a text for Hydra. A pair of quotes that already encloses the text is removed first."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and value[0] not in value[1:-1]:
        value = value[1:-1]
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)  # Hydra unescapes backslashes only before a quote
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def type_name(hint: Any) -> str:
    """Return the declared type of a key as text, such as `list[int] or null`."""
    kind, many, optional = parts(hint)
    name = " | ".join(get_args(kind)) if get_origin(kind) is Literal else kind.__name__
    return (f"list[{name}]" if many else name) + (" or null" if optional else "")


def as_written(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_yaml(config: Mapping[str, Any]) -> str:
    """Convert a configuration (nested dicts of plain data) to YAML."""
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
