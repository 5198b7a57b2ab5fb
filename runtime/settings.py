"""Settings of a program: one frozen dataclass from a TOML file, the environment and flags.

Flags take precedence over the environment, the environment over the file.

A setting has one name everywhere: ``queue_timeout`` in TOML, ``FABRIC_SERVER_QUEUE_TIMEOUT`` in the
environment, ``--queue-timeout`` as a flag.  An unknown name is an error, so a misspelt setting
is never ignored.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

from runtime.convert import convert, without_none
from runtime.errors import Problem
from runtime.shown import Secret, shown, without_password


class DataclassInstance(Protocol):
    """Instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=DataclassInstance)

__all__ = ["Conflict", "Secret", "SettingsError", "about", "describe", "load", "locate"]

# Kubernetes puts FABRIC_SERVER_SERVICE_HOST, FABRIC_SERVER_PORT_17000_TCP_ADDR and their like into
# every pod beside a Service named fabric-server; they are not misspelt settings.
_OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")


class SettingsError(Problem):
    """Invalid settings; ``str()`` is one sentence: the setting, its source, what to do."""


class Conflict(ValueError):
    """Contradiction between values, raised by a settings class in ``__post_init__``.

    ``load`` turns it into a ``SettingsError`` that adds the source of each of ``names``.
    """

    def __init__(self, sentence: str, *names: str) -> None:
        super().__init__(sentence)
        self.names = names


def about(
    help: str,
    *,
    unit: Literal["seconds", "bytes"] | None = None,
    least: float | None = None,
    most: float | None = None,
    empty: bool = False,
) -> Mapping[str, Any]:
    """Return a field's metadata: ``field(default=10.0, metadata=about("…", unit="seconds"))``.

    ``help`` is shown by ``--help`` and ``check-config``; ``load`` checks the bounds, both allowed.
    ``empty``: an empty variable is an empty list, instead of not given.
    """
    return {"help": help, "unit": unit, "least": least, "most": most, "empty": empty}


class _Given(NamedTuple):
    value: object
    source: str
    """Path of the file, name of the variable, or flag; shown by ``describe``."""
    relative_to: Path | None = None


def locate(flag: Path | None, *, environ: Mapping[str, str], prefix: str) -> Path | None:
    """Return the settings file given by ``--config`` or ``<prefix>CONFIG``, or None."""
    if flag is not None:
        return flag.expanduser()
    named = environ.get(f"{prefix}CONFIG")
    return Path(named).expanduser() if named else None


def load(
    cls: type[T],
    *,
    file: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    prefix: str,
) -> T:
    """Build ``cls``; raise ``SettingsError`` for the first error.

    ``prefix`` is that of the environment variables, underscore included.  An empty variable (unless
    ``about`` says otherwise) and a flag that is None or an empty list count as not given.  Paths in
    the file are relative to it.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    given = {
        **_from_file(file, fields),
        **_from_environment(environ, prefix, fields),
        **_from_flags(flags, fields),
    }
    for name, field in fields.items():
        if name not in given and field.default is MISSING and field.default_factory is MISSING:
            raise SettingsError(f"{name} is not set: give {_flag(name)} or {prefix}{name.upper()}.")
    values = {name: _convert(fields[name], hints[name], one) for name, one in given.items()}
    sources = {name: given[name].source if name in given else "default" for name in fields}
    try:
        settings = cls(**values)
    except Conflict as conflict:
        origin = ", ".join(f"{name}: {sources[name]}" for name in conflict.names)
        raise SettingsError(f"{conflict} ({origin})" if origin else str(conflict)) from None
    # An attribute beside the fields takes no part in comparison or repr; `describe` reads it.
    object.__setattr__(settings, "_sources", sources)
    return settings


def describe(settings: DataclassInstance) -> list[tuple[str, str, str]]:
    """Return (name, value, source) of each setting, secrets masked.

    The source is "default" for an instance that ``load`` did not create.
    """
    sources = getattr(settings, "_sources", {})
    return [
        (
            field.name,
            shown(getattr(settings, field.name), field.metadata.get("unit")),
            sources.get(field.name, "default"),
        )
        for field in dataclasses.fields(settings)
    ]


def _convert(field: dataclasses.Field[Any], hint: Any, given: _Given) -> Any:
    try:
        return convert(field, hint, given.value, given.relative_to)
    except ValueError as error:
        value = "***" if without_none(hint) is Secret else without_password(repr(given.value))
        raise SettingsError(f"{field.name} is {value} in {given.source}, but {error}.") from None


# ── where values come from ────────────────────────────────────────────────────────────────────


def _from_file(file: Path | None, names: Iterable[str]) -> dict[str, _Given]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"There is no settings file {file}: create it, or omit --config."
        ) from None
    except OSError as error:
        raise SettingsError(
            f"The settings file {file} can't be read: {error.strerror or error}."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {file} is not valid TOML: {error}.") from None
    for name in table:
        if name not in names:
            raise _unknown(name, f"in {file}", names, str)
    beside = file.absolute().parent
    return {name: _Given(value, str(file), beside) for name, value in table.items()}


def _from_environment(
    environ: Mapping[str, str], prefix: str, names: Mapping[str, dataclasses.Field[Any]]
) -> dict[str, _Given]:
    def written(name: str) -> str:
        return f"{prefix}{name.upper()}"

    given = {}
    for variable, value in environ.items():
        if not variable.startswith(prefix) or variable == written("config"):
            continue
        rest = variable.removeprefix(prefix)
        name = rest.lower()
        if not value and not (name in names and names[name].metadata.get("empty")):
            continue
        if name in names and variable == written(name):
            given[name] = _Given(value, variable)
        elif not _OF_KUBERNETES.fullmatch(rest):
            raise _unknown(rest, "in the environment", names, written)
    return given


def _from_flags(flags: Mapping[str, object], names: Iterable[str]) -> dict[str, _Given]:
    given = {}
    for name, value in flags.items():
        if name not in names:
            raise _unknown(name, "on the command line", names, _flag)
        if value is not None and value != [] and value != ():
            given[name] = _Given(value, _flag(name))
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown(
    name: str, where: str, names: Iterable[str], written: Callable[[str], str]
) -> SettingsError:
    """Return the error for an unknown name; ``written`` spells a setting as in that place."""
    close = get_close_matches(name.replace("-", "_").lower(), names, n=1)
    remedy = f"did you mean {written(close[0])}?" if close else "remove it, or see --help for all."
    return SettingsError(f"{written(name)} {where} is not a setting: {remedy}")
