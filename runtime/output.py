"""Output of commands: tables for people, JSON for scripts, one sentence for a failure.

Results go to standard output, remarks to standard error: ``KEY=$(… keys create x)`` holds the key
and nothing else.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import typer
from typer.core import TyperCommand

from runtime.errors import Problem
from runtime.shown import one_line, printable_json

DEFECT = 1
WRONG = 2
"""Exit code: input, settings or environment that the user can correct."""
REFUSED = 3
"""Exit code: refused permanently; trying again changes nothing."""

log = logging.getLogger("fabric")


class Failure(Problem):
    """Problem that ends the command: ``str()`` on standard error, ``code`` as its exit code."""

    def __init__(self, sentence: str, code: int = WRONG) -> None:
        super().__init__(sentence)
        self.code = code


# Plain help: long flags leave no room for descriptions in rich's columns.
_plain = partial(typer.Typer, add_completion=False, rich_markup_mode=None)


def one_command() -> typer.Typer:
    """Return the app of a single command."""
    return _plain()


def commands(help: str) -> typer.Typer:
    """Return a group of commands that prints its help when called alone."""
    app = _plain(help=help, no_args_is_help=True)
    app.callback()(lambda: None)  # without one, a group of one command would be that command
    return app


def add_commands(app: typer.Typer, package: str, table: Mapping[str, tuple[str, str]]) -> None:
    """Add commands, and groups of them, whose modules are imported only when they are used.

    The table has by each name the command's place, ``module:object`` in the package, and the first
    sentence of its help, for the list of all commands.  The object is a function or a Typer.
    """
    for name, (place, help) in table.items():
        app.command(name, help=help, cls=LateCommand)(_finder(f"{package}.{place}"))


def _finder(place: str) -> Callable[[], Any]:
    return lambda: resolve_name(place)


class LateCommand(TyperCommand):
    """Stands for a command until that is used: knows its name, and the sentence in the list."""

    def load(self) -> Any:
        """Return the command itself."""
        assert self.callback is not None
        found = self.callback()
        if not isinstance(found, typer.Typer):
            function, found = found, one_command()
            found.command(self.name)(function)
        return typer.main.get_command(found)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        # All use of a command goes through its context: to run it, show its help, or complete it.
        return self.load().make_context(info_name, args, parent, **extra)


def main(
    app: typer.Typer, name: str, failures: Mapping[type[Exception], int] = MappingProxyType({})
) -> NoReturn:
    """Run the command given on the command line, and exit.

    ``failures`` are exit codes of exceptions whose ``str()`` is a sentence for the user, as that of
    each ``Problem`` is.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # consoles that can't show a character show "?"
            stream.reconfigure(errors="replace")
    sys.exit(_run(app, name, {**failures, Problem: WRONG}))


def _run(app: typer.Typer, name: str, failures: Mapping[type[Exception], int]) -> int:
    try:
        code = typer.main.get_command(app)(standalone_mode=False)
    except typer.TyperException as error:
        _usage(name, error)
        return WRONG
    except typer.Abort:
        return DEFECT
    except tuple(failures) as error:
        _complain(name, str(error))
        if isinstance(error, Failure):
            return error.code
        return next(code for kind, code in failures.items() if isinstance(error, kind))
    except Exception:
        log.critical("stopped by a defect in %s", name, exc_info=True)
        return DEFECT
    return code if isinstance(code, int) else 0


def make_directory(directory: Path) -> None:
    """Create a program's data directory, private to its user.

    Raises ``Failure`` when it is not writable.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise Failure(f"{directory} is not writable ({reason}): set data to another.") from None


def _complain(name: str, sentence: str) -> None:
    note(f"{name}: {sentence}")


def _usage(name: str, error: typer.TyperException) -> None:
    message = error.format_message()
    if message.startswith("Usage:"):  # the whole help: no command was given
        typer.echo(message, err=True)
        return
    context = getattr(error, "ctx", None)
    if not message.endswith((".", "?")):
        message += "."
    if context is not None:
        message += f" See '{context.command_path} --help'."
    _complain(name, message)


# ── printing ──────────────────────────────────────────────────────────────────────────────────


def say(text: str = "") -> None:
    """Print a line on standard output; empty lines may stand around it."""
    line = text.strip("\n")
    before, _, after = text.partition(line) if line else (text, "", "")
    typer.echo(f"{before}{one_line(line)}{after}")


def note(text: str) -> None:
    """Print a line on standard error, for people."""
    typer.echo(one_line(text), err=True)


def say_json(value: object, *, line: bool = False) -> None:
    """Print JSON, indented or on one ``line``."""
    text = msgspec.json.encode(value, enc_hook=str)
    typer.echo(printable_json((text if line else msgspec.json.format(text, indent=2)).decode()))


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal; in a pipe without line breaks, for grep and awk."""
    # Imported here: to import rich takes longer than most commands that print no table.
    from rich.console import Console
    from rich.table import Table

    # Markup off: names may contain square brackets.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    for row in rows:
        table.add_row(*map(one_line, row))
    console.print(table)


def moment(at: float | None) -> str:
    """Format Unix seconds as local date and time; "-" for never."""
    return "-" if at is None else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """Format seconds as ``12 s``, ``5 min``, ``3 h`` or ``9 days``."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def program(name: str) -> str:
    """Return the command that starts this program as it was started now."""
    typed = sys.argv[0]
    if Path(typed).stem == "__main__":
        return f"{os.path.basename(sys.executable)} -m {name.replace('-', '_')}"
    return name if shutil.which(name) == shutil.which(typed) else typed
