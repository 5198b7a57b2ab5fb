"""Log lines: one per fact, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from runtime import logs
from runtime.settings import Secret

log = logging.getLogger("fabric.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(level: str = "debug") -> Terminal:
    out = Terminal()
    logs.configure(level, stream=out)
    return out


def elsewhere(level: str = "debug") -> io.StringIO:
    out = io.StringIO()
    logs.configure(level, stream=out)
    return out


def test_on_a_terminal_a_line_has_time_level_event_and_fields() -> None:
    out = on_terminal()
    log.info("node joined", extra={"node": "node_7f", "epoch": 3})
    assert re.fullmatch(r"\d\d:\d\d:\d\d info  node joined  node=node_7f epoch=3\n", out.getvalue())


def test_without_a_terminal_lines_are_json() -> None:
    out = elsewhere()
    log.warning("slow", extra={"seconds": 1.5, "names": ["a", "b"], "none": None})
    line = json.loads(out.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("at"))
    assert line == {
        "level": "warning",
        "event": "slow",
        "seconds": 1.5,
        "names": ["a", "b"],
        "none": None,
    }


def test_json_can_be_asked_for_and_refused() -> None:
    out = Terminal()
    logs.configure("info", stream=out, json=True)
    log.info("one")
    assert json.loads(out.getvalue())["event"] == "one"
    out = io.StringIO()
    logs.configure("info", stream=out, json=False)
    log.info("two")
    assert out.getvalue().endswith("info  two\n")


def test_the_last_configuration_counts() -> None:
    first, second = elsewhere(), elsewhere()
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_lines_below_the_level_are_left_out() -> None:
    out = on_terminal("warning")
    log.info("not this")
    log.error("this")
    assert "not this" not in out.getvalue()
    assert " error this" in out.getvalue()


def test_values_that_would_split_a_line_are_quoted() -> None:
    out = on_terminal()
    log.info(
        "odd\nevent", extra={"a": "two words", "b": "x\ny", "c": "", "d": "\x1b[2J", "e": 'q"'}
    )
    assert out.getvalue().count("\n") == 1
    assert r'odd\nevent  a="two words" b="x\ny" c="" d="\x1b[2J" e="q\""' in out.getvalue()


def test_an_exception_brings_its_traceback() -> None:
    terminal = on_terminal()
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed", extra={"node": "n"})
        out = elsewhere()
        log.exception("it failed", extra={"node": "n"})
    first, *rest = terminal.getvalue().splitlines()
    assert first.endswith("error it failed  node=n")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1].strip() == "ValueError: broken"
    line = json.loads(out.getvalue())
    assert line["event"] == "it failed"
    assert line["traceback"].endswith("ValueError: broken")


@pytest.mark.parametrize("make", [on_terminal, elsewhere])
def test_secrets_never_appear(make: type[io.StringIO]) -> None:
    out = make()
    log.info("key %s", Secret("hunter2"), extra={"key": Secret("hunter2")})
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("***") == 2


@contextmanager
def uncaptured() -> Iterator[None]:
    """Hide log lines from pytest: a process of pytest-xdist dies of a report that is no UTF-8."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers.extend(handlers)


@pytest.mark.parametrize("make", [on_terminal, elsewhere])
def test_no_value_can_stop_a_line_from_being_written(make: type[io.StringIO]) -> None:
    surrogate = b"\xff".decode("utf-8", "surrogateescape")
    fields = {"name_": surrogate, "thing": object(), "map": {(1,): 2}}
    with uncaptured():
        out = make()
        log.info(f"event {surrogate}", extra=fields)
        log.info("number", extra={"big": 10**40, "nan": float("nan")})
    assert out.getvalue().count("\n") == 2
    out.getvalue().encode()


def test_a_field_does_not_replace_the_event() -> None:
    out = elsewhere()
    log.info("real", extra={"event": "false", "at": "never"})
    assert json.loads(out.getvalue())["event"] == "real"


def test_a_program_without_standard_error_logs_nothing_and_runs() -> None:
    # Python gives a program whose standard error is closed no sys.stderr, as pythonw on Windows.
    code = (
        "import logging, sys; from runtime import logs; assert sys.stderr is None; "
        "logs.configure('info'); logging.getLogger('fabric.x').info('nowhere'); print('runs')"
    )
    script = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "runs\n")
