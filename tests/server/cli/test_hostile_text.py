"""Names, reasons and models that others wrote never reach a terminal or a log raw.

All commands are run over a store and a node's state in which every text is hostile.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import typer

from fabric_client.__main__ import app as client
from fabric_client.__main__ import main as run_client
from fabric_client.owner import state
from fabric_server.__main__ import app as server
from fabric_server.__main__ import main as run_server
from ledger.records import LedgerEntry
from protocol.messages import EngineReport, ModelReport
from runtime.logs import JsonLines, TerminalLines
from runtime.output import LateCommand
from tests.commands import Shell

HOSTILE = 'a\x1b[2J\x1b]0;b\x07\x9b31m\u202ec\u2066d\u200b\ufeffe\r\n{"event":"ready"}\ue000 “f”'
KEY, ACCOUNT, NODE = "key_0000000000000001", "acc_0000000000000001", "node_0000000000000001"
REQUEST = "req_0000000000000001"

COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "fabric-server up": [],  # its lines are the log's
    "fabric-server init": [(), ("--address", HOSTILE)],
    "fabric-server reload": [()],
    "fabric-server status": [(), ("--json",)],
    "fabric-server backup": [
        ("--recipient", HOSTILE, "--output", "/nowhere/x"),
        ("--plain", "--output", f"/nowhere/{HOSTILE}"),
    ],
    "fabric-server restore": [(HOSTILE,), (HOSTILE, "--check")],
    "fabric-server requests": [
        (),
        (REQUEST,),
        (HOSTILE,),
        ("--json",),
        ("--failed", "--since", "1d", "--model", HOSTILE, "--limit", "1"),
        ("--since", HOSTILE),
        ("--before", HOSTILE),
    ],
    "fabric-server usage": [
        tuple(f"--by={name}" for name in ("account", "key", "model", "node", "engine", "path")),
        ("--by=day", "--by=outcome", "--json"),
        ("--since", HOSTILE),
    ],
    "fabric-server install-service": [("--dry-run", "--system", "--run-as", HOSTILE)],
    "fabric-server uninstall-service": [("--dry-run", "--system")],
    "fabric-server check-config": [()],
    "fabric-server doctor": [(), ("--json",), ("--address", HOSTILE)],
    "fabric-server accounts create": [(HOSTILE,), ("fine", "--note", HOSTILE)],
    "fabric-server accounts list": [()],
    "fabric-server accounts disable": [(ACCOUNT,), (HOSTILE,)],
    "fabric-server accounts enable": [(ACCOUNT,)],
    "fabric-server keys create": [(HOSTILE,), ("fine", "--account", HOSTILE)],
    "fabric-server keys list": [()],
    "fabric-server keys set": [(KEY,), (KEY, "--requests-per-minute", HOSTILE)],
    "fabric-server keys disable": [(KEY,), (HOSTILE,)],
    "fabric-server keys enable": [(KEY,)],
    "fabric-server keys revoke": [(KEY,)],
    "fabric-server nodes invite": [("--name", HOSTILE)],
    "fabric-server nodes list": [()],
    "fabric-server nodes show": [(NODE,), (HOSTILE,)],
    "fabric-server nodes drain": [(NODE,), (HOSTILE,)],
    "fabric-server nodes undrain": [(NODE,)],
    "fabric-server nodes revoke": [(NODE,)],
    "fabric-server nodes settle": [(NODE,), (HOSTILE,)],
    "fabric-server certs show": [()],
    "fabric-server db migrate": [()],
    "fabric-server db status": [()],
    "fabric-server retention show": [(), ("--json",)],
    "fabric-server retention run": [("--dry-run",), ("--ledger-archive", HOSTILE)],
    "fabric-server guard install": [("--dry-run", "--trust", HOSTILE), ("--xdp", HOSTILE)],
    "fabric-server guard status": [()],
    "fabric-server guard remove": [("--dry-run",)],
    "fabric-client join": [(HOSTILE,)],
    "fabric-client run": [],  # its lines are the log's
    "fabric-client status": [()],
    "fabric-client doctor": [("--no-discover",), ("--no-discover", "--json")],
    "fabric-client pause": [("--for", HOSTILE)],
    "fabric-client resume": [()],
    "fabric-client drain": [()],
    "fabric-client reload": [()],
    "fabric-client fingerprint": [(), ("--json",)],
    "fabric-client chat": [
        (),
        ("--url", HOSTILE),
        ("--url", "http://127.0.0.1:1", "--key-file", HOSTILE),
    ],
    "fabric-client install-service": [("--dry-run", "--user", "--data", HOSTILE)],
    "fabric-client uninstall-service": [("--dry-run", "--user")],
}
"""For every command, the arguments with which it is run."""


def names(program: str, app: typer.Typer) -> set[str]:
    found = set()

    def walk(prefix: str, command: object) -> None:
        if isinstance(command, LateCommand):
            command = command.load()
        inner = getattr(command, "commands", None)
        if not inner:
            found.add(prefix)
            return
        for name, one in inner.items():
            walk(f"{prefix} {name}", one)

    walk(program, typer.main.get_command(app))
    return found


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def fill(path: Path) -> None:
    """Give every table a row, or make the texts of its rows hostile."""
    ids = {"accounts": ACCOUNT, "keys": KEY, "nodes": NODE}
    with sqlite3.connect(path) as connection:
        for table, id in ids.items():
            columns = list(connection.execute(f"PRAGMA table_info({table})"))
            values: list[object] = []
            for _, name, kind, _, default, _ in columns:
                if name == "id":
                    values.append(id)
                elif name in ("account_id", "account"):
                    values.append(ACCOUNT)
                elif name in ("models", "scopes"):
                    values.append(json.dumps([HOSTILE]))
                elif "TEXT" in kind:
                    values.append(HOSTILE if default is None or name in TEXTS else _own(default))
                elif kind in ("BYTEA", "BLOB"):
                    values.append(b"x" * 32)
                elif "DOUBLE" in kind or "REAL" in kind:
                    values.append(time.time() if name == "created_at" else None)
                else:
                    values.append(0 if default is None else json.loads(_own(default).lower()))
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)
        connection.execute(
            "INSERT INTO served_models (node_id, model, seen_at, quantization, digest)"
            " VALUES (?, ?, ?, ?, ?)",
            (NODE, HOSTILE, time.time(), HOSTILE, HOSTILE),
        )
        entry = LedgerEntry(
            REQUEST, time.time(), HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, True, 503,
            HOSTILE, HOSTILE, 1, 1, 1, 1.0, 1.0, 1.0, 1, 1, HOSTILE,
        )  # fmt: skip
        values = list(msgspec.structs.astuple(entry))
        marks = ", ".join("?" * len(values))
        columns_of_entry = ", ".join(LedgerEntry.__struct_fields__)
        connection.execute(f"INSERT INTO ledger ({columns_of_entry}) VALUES ({marks})", values)


TEXTS = {"name", "note", "platform", "version", "region", "problem"}


def _own(default: str) -> str:
    return default.strip("'")


def hostile_state(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    report = EngineReport(HOSTILE, HOSTILE, True, 1, [ModelReport(HOSTILE)], HOSTILE)
    now = time.time()
    state.write(
        directory,
        state.State(
            1, now, NODE, HOSTILE, HOSTILE, False, now, HOSTILE, 1, 0, 0, [report], paused=HOSTILE
        ),
    )


def test_every_command_is_tried() -> None:
    assert names("fabric-server", server) | names("fabric-client", client) == set(COMMANDS)


@pytest.fixture
def call(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run a command in this process, with the shell's home; return its output and errors."""
    for name in set(os.environ) - set(shell.environ):
        monkeypatch.delenv(name)
    for name, value in shell.environ.items():
        monkeypatch.setenv(name, value)
    programs = {"fabric-server": run_server, "fabric-client": run_client}

    def run(program: str, *words: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", [program, *words])
        with pytest.raises(SystemExit):
            programs[program]()
        done = capsys.readouterr()
        return done.out, done.err

    return run


def test_no_command_prints_what_others_wrote_raw(
    shell: Shell, call: Callable[..., tuple[str, str]]
) -> None:
    call("fabric-server", "init")
    fill(shell.server_data / "fabric.sqlite")
    hostile_state(shell.node_data)
    seen = ""
    for command, calls in COMMANDS.items():
        for words in calls:
            for more in ((), ("--json",)) if command.endswith(("list", "status")) else ((),):
                out, err = call(*command.split(), *words, *more)
                assert "Traceback" not in err, (command, words, err)
                assert harmless(out), (command, words, out)
                assert harmless(err), (command, words, err)
                if more and out:  # "guard status" needs nft, which is not everywhere
                    json.loads(out)
                assert out or err, (command, words)
                seen += out
    assert seen.count("\\u202e") > 8, "the hostile text was not there to be printed"


@pytest.mark.parametrize("formatter", [TerminalLines(), JsonLines()])
def test_no_log_line_has_what_others_wrote_raw(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        trace = (type(error), error, error.__traceback__)
    record = logging.LogRecord("fabric", logging.ERROR, "x", 1, HOSTILE, (), trace)
    record.node, record.models, record.more = HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}
    text = formatter.format(record)
    assert harmless(text), text
    if isinstance(formatter, JsonLines):
        assert "\n" not in text
        assert msgspec.json.decode(text)["node"] == HOSTILE
    else:  # nothing of the text begins a line
        assert not any(line.startswith("{") for line in text.split("\n"))
