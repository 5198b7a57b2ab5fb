"""Runs the checks of a ``doctor`` command side by side, each within its time, and shows them."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from runtime.findings import Finding, disk
from runtime.output import say, say_json
from runtime.shown import one_line

T = TypeVar("T")

SECONDS = 10.0
"""Time for one check."""
FAILED = 1
"""Exit code when anything has failed."""
_WIDTH = 80
_INDENT = 6


class Check(NamedTuple):
    """One check of a doctor; it may find several things."""

    name: str
    run: Callable[[], Coroutine[Any, Any, Sequence[Finding]]]
    seconds: float = SECONDS


async def examine(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at once, and return what they found, in their order."""
    found = await asyncio.gather(*(_bounded(check) for check in checks))
    return [finding for findings in found for finding in findings]


async def _bounded(check: Check) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(check.seconds):
            return await check.run()
    except TimeoutError:
        what = f"no result within {check.seconds:g} s"
        remedy = "what is checked hangs; the other lines may say why"
        return [Finding(check.name, "FAIL", what, "check_timeout", remedy)]
    except Exception as error:  # a defect of one check must not hide what the others found
        what = f"the check itself failed: {type(error).__name__}: {error}"
        remedy = "report this line to the project"
        return [Finding(check.name, "warn", what, "check_failed", remedy)]


async def in_thread(work: Callable[[], T]) -> T:
    """Run blocking work that may hang in a thread that does not keep the program from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except Exception as error:  # raised again in the loop
            problem = error
        try:
            loop.call_soon_threadsafe(finish, result, problem)
        except RuntimeError:  # the loop is closed: nobody waits for the result any more
            return

    threading.Thread(target=run, daemon=True).start()
    return await done


async def check_disk(data: Path) -> list[Finding]:
    """Check that the disk of a program's directory has room, and can be written by this user."""

    def look() -> Finding:
        place = data.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            found = disk(str(place), shutil.disk_usage(place).free)
            if found.level != "FAIL":
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(b"fabric")
        except OSError as error:
            what = f"{place} can't be written: {error.strerror or error}"
            remedy = "run this as the program's user, or set data to another directory"
            return Finding("disk", "FAIL", what, "disk_unwritable", remedy)
        return found

    return [await in_thread(look)]


def show(findings: Sequence[Finding], *, json: bool) -> int:
    """Print the findings, and return the exit code: 1 if anything has failed, else 0.

    On a terminal remedies have lines of their own; in a pipe each finding has one line.
    """
    if json:
        say_json([_described(one) for one in findings])
    else:
        width = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else None
        for one in findings:
            for line in lines(one, width):
                say(line)
        say(_summary(findings))
    return FAILED if any(one.level == "FAIL" for one in findings) else 0


def lines(finding: Finding, width: int | None) -> list[str]:
    """Return the lines of a finding; in one line without ``width``."""
    what = one_line(f"{finding.level:<4}  {finding.check}: {finding.what}")
    remedy = one_line(f"-> {finding.remedy}") if finding.remedy else ""
    if width is None:
        return [f"{what} {remedy}".rstrip()]
    indent = " " * _INDENT
    wrapped = textwrap.wrap(what, width, subsequent_indent=indent)
    wrapped += textwrap.wrap(remedy, width, initial_indent=indent, subsequent_indent=f"{indent}   ")
    return wrapped


def _described(finding: Finding) -> dict[str, object]:
    described: dict[str, object] = msgspec.structs.asdict(finding)
    return {name: value or None for name, value in described.items()}


def _summary(findings: Sequence[Finding]) -> str:
    failed = sum(one.level == "FAIL" for one in findings)
    warned = sum(one.level == "warn" for one in findings)
    if not failed and not warned:
        return f"All {len(findings)} findings are good."
    return f"{failed} failed, {warned} warnings, {len(findings) - failed - warned} good."
