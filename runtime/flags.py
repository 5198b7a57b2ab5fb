"""Command line flags from a settings dataclass: one per field, so that names can't drift apart.

    @app.command()
    @takes_settings(Config, PREFIX)
    def up(settings: Config, json: Annotated[bool, typer.Option("--json")] = False) -> None:

gives ``up --public-port 18080 … --config FILE``, and calls the function with what
``settings.load`` made of the file, the environment and the flags.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from runtime.convert import without_none
from runtime.settings import DataclassInstance, SettingsError, load, locate
from runtime.shown import shown

T = TypeVar("T", bound=DataclassInstance)

FILE = "fabric.toml"
"""Default settings file, read from the directory in the setting ``data`` if it is there."""

Result = TypeVar("Result")


def about_settings(prefix: str, cls: type[DataclassInstance]) -> str:
    """Return the end of a command's help: the other sources of settings."""
    file = FILE if _has_data(cls) else "the file of --config"
    return (
        f"Each setting may also stand in the environment, as {prefix}LOG_LEVEL does for "
        f"--log-level, or in {file}, as log_level. Flags come first, then the environment."
    )


def takes_settings(
    cls: type[T],
    prefix: str,
    *,
    only: Collection[str] | None = None,
    not_settings: Collection[str] = (),
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Replace the parameter ``settings`` of a typer command with one flag per field.

    With ``only``, just these fields get flags; the others still come from file and environment.
    ``not_settings`` are variables that begin with ``prefix`` and mean something else.
    """
    fields = [field for field in dataclasses.fields(cls) if only is None or field.name in only]
    hints = typing.get_type_hints(cls)

    def decorate(command: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(command)
        def wrapper(**given: Any) -> Result:
            flags = {field.name: _joined(given.pop(field.name)) for field in fields}
            environ = {k: v for k, v in os.environ.items() if k not in not_settings}
            settings = read(cls, prefix, environ=environ, flags=flags, file=given.pop("config"))
            return command(settings=settings, **given)

        own = typing.get_type_hints(command, include_extras=True)
        parameters = [
            parameter.replace(annotation=own[parameter.name], kind=parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "settings"
        ]
        parameters += [_parameter(field, hints[field.name]) for field in fields]
        parameters.append(_config(prefix, _has_data(cls)))
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return wrapper

    return decorate


def read(
    cls: type[T],
    prefix: str,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    file: Path | None,
) -> T:
    """Load settings from the file given, or from ``FILE`` in ``data``; see ``settings.load``."""
    requested = file
    place = file = locate(file, environ=environ, prefix=prefix)
    if file is None and _has_data(cls):
        data = flags.get("data") or environ.get(f"{prefix}DATA") or _default(cls, "data")
        place = Path(str(data)).expanduser() / FILE
        file = place if _is_file(place) else None
    settings = load(cls, file=file, environ=environ, flags=flags, prefix=prefix)
    # Attributes beside the fields, as `load` stores their sources, for `read_again` and `file_of`.
    object.__setattr__(settings, "_file", place)
    again = functools.partial(read, cls, prefix, environ=environ, flags=flags, file=requested)
    object.__setattr__(settings, "_again", again)
    object.__setattr__(settings, "_chosen_file", locate(requested, environ=environ, prefix=prefix))
    return settings


def _is_file(path: Path) -> bool:
    """Return whether the file is there.  Raises ``SettingsError`` if this user can't tell."""
    try:
        return path.is_file()
    except OSError as error:
        raise SettingsError(
            f"{path.parent} can't be read by this user ({error.strerror or error}): run this with "
            "sudo or as the owner of the directory, or set --data to another."
        ) from None


def chosen_file(settings: DataclassInstance) -> Path | None:
    """Return the settings file that was named by --config or the environment, None if none was."""
    file: Path | None = getattr(settings, "_chosen_file", None)
    return file


def read_again(settings: T) -> T:
    """Return the same settings with their file read again; raise ``SettingsError``."""
    again: Callable[[], T] | None = getattr(settings, "_again", None)
    return settings if again is None else again()


def file_of(settings: DataclassInstance) -> Path | None:
    """Return where the settings' file is, or would be; None if they have no file."""
    place: Path | None = getattr(settings, "_file", None)
    return place


def merge(settings: T, loaded: T, names: Collection[str]) -> T:
    """Return ``settings`` with the fields ``names`` of ``loaded``, and its sources and flags."""
    merged = dataclasses.replace(settings, **{name: getattr(loaded, name) for name in names})
    for hidden in ("_sources", "_again", "_file", "_chosen_file"):
        if hasattr(loaded, hidden):
            object.__setattr__(merged, hidden, getattr(loaded, hidden))
    return merged


def _has_data(cls: type[DataclassInstance]) -> bool:
    """Return whether the program has a directory, in which ``FILE`` may lie."""
    return any(field.name == "data" for field in dataclasses.fields(cls))


def _default(cls: type[T], name: str) -> object:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _joined(value: object) -> object:
    """Return the values of a repeated flag as one text, as in the environment."""
    return ",".join(value) if isinstance(value, list) else value


# ── one flag ──────────────────────────────────────────────────────────────────────────────────


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    plain = without_none(hint)
    flag = f"--{field.name.replace('_', '-')}"
    # Texts, whatever the type: `load` converts them, with the same errors for all sources.
    kind: Any = str | None
    if typing.get_origin(plain) in (tuple, list):
        kind = list[str] | None
    elif plain is bool:
        kind = bool | None
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(
        flag,
        help=_help(field),
        metavar=None if plain is bool else _metavar(field, plain),
        show_default=False,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )


def _config(prefix: str, has_data: bool) -> inspect.Parameter:
    help = f"Settings file (TOML), also {prefix}CONFIG."
    if has_data:
        help += f" Default: {FILE} in data, if it exists."
    option = typer.Option("--config", help=help, metavar="FILE", show_default=False)
    return inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


def _help(field: dataclasses.Field[Any]) -> str:
    text = str(field.metadata.get("help", ""))
    if field.default_factory is not MISSING:
        return text  # the default differs from machine to machine; the text describes it
    if field.default is MISSING:
        return f"{text} (required)"
    if field.default in (None, "", ()) or isinstance(field.default, bool):
        return text
    return f"{text} (default: {shown(field.default, field.metadata.get('unit'))})"


def _metavar(field: dataclasses.Field[Any], plain: Any) -> str:
    unit = field.metadata.get("unit")
    if unit is not None:
        return str(unit).upper()
    if typing.get_origin(plain) is Literal:
        return "|".join(map(str, typing.get_args(plain)))
    return {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(plain, "TEXT")
