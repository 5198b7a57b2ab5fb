"""Logging, one line per event: text on a terminal, JSON lines otherwise.

    log = logging.getLogger(__name__)
    log.info("node joined", extra={"node": node_id, "epoch": 3})

    12:00:01 info  node joined  node=n_7f epoch=3
    {"at":"2026-01-31T11:00:01.250Z","level":"info","event":"node joined","node":"n_7f","epoch":3}

A field can't have the name of an attribute of ``logging.LogRecord``: ``name``, ``module``,
``process``, ``message`` and others raise KeyError where the line is logged.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from runtime.log_limit import RepeatLimit
from runtime.shown import Secret, one_line, printable, printable_json

LEVELS = ("debug", "info", "warning", "error")

_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SHORT = {"warning": "warn", "critical": "fatal"}

# Libraries whose info and debug lines are of no use here.
_QUIETER = {"asyncio": logging.INFO, "aiohttp.access": logging.WARNING}


def configure(level: str, *, stream: TextIO | None = None, json: bool | None = None) -> None:
    """Send every log line of ``level`` and above to ``stream`` (standard error by default).

    Of an event that repeats without end, lines are left out (``RepeatLimit``).
    ``json=None`` means JSON lines unless the stream is a terminal.  May be called again: the last
    call counts.
    """
    out = stream if stream is not None else sys.stderr
    handler: logging.Handler
    if out is None:  # pythonw and Windows services have no standard error
        handler = logging.NullHandler()
    else:
        handler = logging.StreamHandler(out)
        as_json = not out.isatty() if json is None else json
        handler.setFormatter(JsonLines() if as_json else TerminalLines())
    root = logging.getLogger()
    for old in list(root.handlers):
        if old.name == __name__:
            root.removeHandler(old)
    handler.name = __name__
    handler.addFilter(RepeatLimit())
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, least in _QUIETER.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def label(**fields: str) -> None:
    """Give every line of this process these fields, too; they are of a program that has parts."""
    make = logging.getLogRecordFactory()

    def labelled(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        vars(record).update(fields)
        return record

    logging.setLogRecordFactory(labelled)


class TerminalLines(logging.Formatter):
    """``12:00:01 info  node joined  node=… epoch=3``, local time; a traceback follows indented."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = record.levelname.lower()
        line = f"{at} {_SHORT.get(level, level):<5} {one_line(record.getMessage())}"
        fields = " ".join(f"{name}={_value(value)}" for name, value in _fields(record))
        if fields:
            line += f"  {fields}"
        return "\n    ".join([line, *_trace(self, record).splitlines()])


class JsonLines(logging.Formatter):
    """One JSON object per line, time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        for name, value in _fields(record):
            line.setdefault(name, str(value) if isinstance(value, Secret) else value)
        trace = _trace(self, record)
        if trace:
            line["traceback"] = trace
        try:
            return printable_json(msgspec.json.encode(line, enc_hook=str).decode())
        except (TypeError, ValueError):
            # Lone surrogates (from file names, headers) and keys that are not text.
            plain = {str(name): _encodable(str(value)) for name, value in line.items()}
            return printable_json(msgspec.json.encode(plain).decode())


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for name, value in vars(record).items():
        if name not in _ATTRIBUTES and not name.startswith("_"):
            yield name, value


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return printable("\n".join(parts))


def _value(value: object) -> str:
    """Format a value as one word: quoted where a space or a control character would split it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text.isprintable() and text and not any(mark in text for mark in ' "=')
    return text if plain else '"' + one_line(text).replace('"', '\\"') + '"'


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
