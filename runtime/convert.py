"""Conversion of values from TOML, the environment or flags to the type of a setting."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal

import msgspec

from runtime.shown import Secret, parse_size, shown

_YES = {"true": True, "yes": True, "on": True, "1": True}
_NO = {"false": False, "no": False, "off": False, "0": False}


def convert(
    field: dataclasses.Field[Any], hint: Any, given: object, relative_to: Path | None
) -> Any:
    """Convert ``given`` to the field's type; raise ``ValueError`` with what it must be instead."""
    unit = field.metadata.get("unit")

    def adapt(wanted: type, value: object) -> object:
        if wanted is Path and isinstance(value, str | Path):
            path = Path(value).expanduser()
            return relative_to / path if relative_to else path
        if wanted is Secret and isinstance(value, str):
            return Secret(value)
        raise TypeError(f"{wanted} can't be made of {value!r}")

    value = given
    plain = without_none(hint)
    if isinstance(value, str):
        if typing.get_origin(plain) in (tuple, list):
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif plain is bool:
            value = (_YES | _NO).get(value.strip().lower(), value)
        elif unit == "bytes":
            value = parse_size(value)
    try:
        result = msgspec.convert(value, hint, strict=False, dec_hook=adapt)
        if not _within(result, field.metadata):
            raise ValueError("outside its bounds")
    except (msgspec.ValidationError, ValueError, TypeError):
        raise ValueError(f"it must be {_wanted(field, plain)}") from None
    return result


def _within(value: object, metadata: Mapping[str, Any]) -> bool:
    if not isinstance(value, int | float):
        return True
    least, most = metadata.get("least"), metadata.get("most")
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )


def without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _wanted(field: dataclasses.Field[Any], plain: Any) -> str:
    """Describe a valid value: its type, its bounds, and the default as an example."""
    unit, least, most = (field.metadata.get(key) for key in ("unit", "least", "most"))
    words = _kind(plain, unit)
    if least is not None and most is not None:
        words += f" from {least:g} to {most:g}"
    elif least is not None:
        words += f", at least {least:g}"
    example = field.default
    if example in (MISSING, None, "", ()) or isinstance(example, bool):
        return words
    if typing.get_origin(plain) is Literal:
        return words
    return f"{words}, such as {shown(example, unit)}"


def _kind(plain: Any, unit: str | None) -> str:
    if typing.get_origin(plain) is Literal:
        options: Sequence[object] = typing.get_args(plain)
        return "one of " + ", ".join(map(str, options))
    if typing.get_origin(plain) in (tuple, list):
        return "a list of texts"
    if unit == "seconds":
        return "a number of seconds"
    if unit == "bytes":
        return "a number of bytes"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        Path: "a path",
    }.get(plain, "a text")
