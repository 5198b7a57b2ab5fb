"""``fabric-server backup`` and ``restore``: the file, its secrets, and all that can be wrong."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyrage
import pytest
from typer.testing import CliRunner

from fabric_server.__main__ import app
from fabric_server.backup.problem import BackupProblem
from runtime.errors import BackendError
from runtime.output import Failure
from tests.commands import Program, Shell

WORDS = "correct horse battery"
PROGRAM = str(Path(sys.executable).with_name("fabric-server"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A server's data with a key, as 'init' makes it."""
    data = tmp_path / "server"
    ok("init", f"--data={data}", "--address=gpu.example.org")
    ok("keys", "create", "alice", f"--data={data}")
    (data / "fabric.toml").write_text('log_level = "debug"\n')
    (data / "spool" / "request-ledger").mkdir(parents=True)
    (data / "spool" / "request-ledger" / "cursor").write_bytes(b"x" * 12)
    return data


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "passphrase"
    file.write_text(f"{WORDS}\n")
    file.chmod(0o600)
    return file


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def ok(*words: str) -> str:
    done = run(*words)
    assert done.exit_code == 0, (words, done, done.exception)
    return str(done.stdout)


def refused(*words: str) -> str:
    """Return the sentence with which a command ends; 'main' turns all of these into exit code 2."""
    done = run(*words)
    assert isinstance(done.exception, Failure | BackupProblem | BackendError), (words, done)
    assert done.stdout == ""
    return str(done.exception)


def made(data: Path, *words: str) -> Path:
    """Make a backup beside the data; return the file."""
    out = data.parent / "backups"
    out.mkdir(exist_ok=True)
    answer = json.loads(ok("backup", f"--data={data}", f"--output={out}", "--json", *words))
    return Path(answer["path"])


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith("fabric.sqlite")
    }


def test_what_is_restored_is_what_there_was(data: Path, secret: Path, tmp_path: Path) -> None:
    file = made(data, f"--passphrase-file={secret}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.name.endswith(".tar.age")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert b"PRIVATE" not in file.read_bytes()
    checked = json.loads(
        ok("restore", str(file), "--check", f"--passphrase-file={secret}", "--json")
    )
    assert (checked["keys"], checked["encrypted"]) == (1, True)
    assert checked["addresses"] == ["gpu.example.org"]

    there = tmp_path / "there"
    said = ok("restore", str(file), f"--data={there}", f"--passphrase-file={secret}")
    assert "1 keys" in said
    assert "no Redis" in said
    assert files(there) == files(data)
    assert ok("keys", "list", f"--data={there}", "--json") == ok(
        "keys", "list", f"--data={data}", "--json"
    )
    modes = {stat.S_IMODE(path.stat().st_mode) for path in there.rglob("*") if path.is_file()}
    assert modes == {0o600}
    assert not list(there.glob(".*"))


def test_what_each_start_makes_anew_stays_out(data: Path, tmp_path: Path) -> None:
    for name in ("ready.json", ".server.json.1234", "before-restore-20260131T000000Z/x"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_text("{}")
    (data / ".backup-killed").mkdir()
    os.mkfifo(data / "pipe")
    (data / "elsewhere").symlink_to(tmp_path)
    (data / "odd\nname").write_text("x")
    file = made(data, "--plain")
    names = subprocess.check_output(["tar", "tf", file], text=True).splitlines()
    assert set(names) == {
        "fabric-backup.json",
        "data/certs/ca.key",
        "data/certs/ca.pem",
        "data/certs/server.key",
        "data/certs/server.pem",
        "data/fabric.toml",
        "data/server.json",
        "data/spool/request-ledger/cursor",
        "store/fabric.sqlite",
        "manifest.json",
        "end.sha256",
    }
    done = run("backup", f"--data={data}", "--plain", f"--output={tmp_path / 'again.tar'}")
    assert "elsewhere" in done.stderr
    assert "odd\\nname" in done.stderr


def test_a_public_key_needs_no_secret_here(data: Path, tmp_path: Path) -> None:
    pair = pyrage.x25519.Identity.generate()
    keys = tmp_path / "key.txt"
    keys.write_text(f"# a comment\n{pair}\n")
    keys.chmod(0o600)
    file = made(data, f"--recipient={pair.to_public()}")
    ok("restore", str(file), "--check", f"--identity-file={keys}")
    ok("restore", str(file), f"--data={tmp_path / 'there'}", f"--identity-file={keys}")
    assert files(tmp_path / "there") == files(data)


def test_a_plain_one_is_warned_of(data: Path, tmp_path: Path) -> None:
    done = run("backup", f"--data={data}", "--plain", f"--output={tmp_path / 'plain.tar'}")
    assert done.exit_code == 0
    assert "CA's key" in done.stderr
    assert stat.S_IMODE((tmp_path / "plain.tar").stat().st_mode) == 0o600
    ok("restore", str(tmp_path / "plain.tar"), "--check")


def test_the_passphrase_is_asked_for_twice_on_a_terminal(data: Path, tmp_path: Path) -> None:
    for typed, code, words in (
        ([WORDS, WORDS], 0, ""),
        (["short", "short"], 2, "fewer than 8"),
    ):
        file = tmp_path / f"asked-{code}.tar.age"
        leader, follower = pty.openpty()
        program = subprocess.Popen(
            [PROGRAM, "backup", f"--data={data}", f"--output={file}"],
            stdin=follower,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(follower)
        with program:
            assert program.stderr is not None
            said = b""
            for text in typed:
                # The space is written when it waits; what is typed before is thrown away.
                while not said.endswith(b": "):
                    piece = program.stderr.read1(1)
                    assert piece, said
                    said += piece
                os.write(leader, f"{text}\n".encode())
                said = b"."
            out, rest = program.communicate(timeout=60)
        os.close(leader)
        assert program.returncode == code, rest
        assert words in rest.decode()
        assert WORDS not in (out + rest).decode()
        assert file.exists() == (code == 0)


def test_without_a_terminal_and_a_file_it_says_what_to_give(data: Path, tmp_path: Path) -> None:
    said = refused("backup", f"--data={data}", f"--output={tmp_path / 'x'}")
    assert "--passphrase-file" in said
    assert "--recipient" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plain", "--recipient=age1x"], "choose one"),
        (["--recipient=alice"], "no public key of age"),
        (["--passphrase-file=/nowhere"], "can't be read"),
        (["--plain", "--output=/nowhere/backup.tar"], "--output"),
        (["--plain", "--output=DATA/backup.tar"], "best on another disk"),
        (["--plain", "--output=DATA"], "best on another disk"),
        (["--plain", "--output=DATA/fabric.toml"], "another"),
        (["--plain", "--output=EXISTS"], "exists already"),
        (["--plain", "--output=-", "--json"], "--json"),
    ],
)
def test_what_can_not_be_done_is_said_and_nothing_is_left(
    data: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    (tmp_path / "exists").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    words = [one.replace("DATA", str(data)) for one in words]
    words = [one.replace("EXISTS", str(tmp_path / "exists")) for one in words]
    if not any(one.startswith("--output") for one in words):
        words.append(f"--output={tmp_path / 'backup'}")
    assert expected in refused("backup", f"--data={data}", *words)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "exists").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "\n", "short\n"])
def test_a_passphrase_is_neither_empty_nor_short(data: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "words").write_text(text)
    assert "passphrase" in refused(
        "backup", f"--data={data}", f"--passphrase-file={tmp_path / 'words'}"
    )


def test_no_server_no_backup(tmp_path: Path) -> None:
    assert "--data" in refused("backup", f"--data={tmp_path / 'typo'}", "--plain")
    assert not (tmp_path / "typo").exists()


def test_a_damaged_store_is_noticed_when_it_is_backed_up(data: Path, tmp_path: Path) -> None:
    store = data / "fabric.sqlite"
    content = bytearray(store.read_bytes())
    for at in range(4096 * 8, 4096 * 12):
        content[at] ^= 0x5A
    store.write_bytes(content)
    out = tmp_path / "out.tar"
    said = refused("backup", f"--data={data}", "--plain", f"--output={out}")
    assert "fabric.sqlite" in said
    assert not out.exists()
    assert not list(data.glob(".backup-*"))


def test_a_file_that_is_not_empty_is_kept(data: Path, tmp_path: Path) -> None:
    file = made(data, "--plain")
    before = files(data)
    said = refused("restore", str(file), f"--data={data}")
    assert "certs" in said
    assert "--force" in said
    assert files(data) == before
    (data / "mine").write_text("mine")
    said = ok("restore", str(file), f"--data={data}", "--force")
    (kept,) = data.glob("before-restore-*")
    assert str(kept) in said
    assert files(kept) == {**before, "mine": b"mine"}
    assert {name: text for name, text in files(data).items() if "/" not in name} == {
        name: text for name, text in before.items() if "/" not in name
    }
    ok("keys", "list", f"--data={data}")
    ok("keys", "list", f"--data={kept}")
    again = made(data, "--plain")
    assert "before-restore" not in subprocess.check_output(["tar", "tf", again], text=True)


def test_whatever_is_wrong_with_the_file_nothing_is_made(
    data: Path, secret: Path, tmp_path: Path
) -> None:
    whole = made(data, f"--passphrase-file={secret}").read_bytes()
    other = tmp_path / "other"
    other.write_text("another passphrase\n")
    other.chmod(0o600)
    bad, there = tmp_path / "bad", tmp_path / "there"
    cases = [
        (whole[:-1], secret, "missing"),
        (whole[: len(whole) // 2], secret, "missing"),
        (whole[:10], secret, "cut off"),
        (b"", secret, "empty"),
        (b"hello", secret, "no backup"),
        (whole[:-5] + b"xxxxx", secret, "damaged"),
        (whole + b"x", secret, "damaged"),
        (whole, other, "wrong"),
    ]
    for content, words, expected in cases:
        bad.write_bytes(content)
        for more in (["--check"], [f"--data={there}"]):
            said = refused("restore", str(bad), f"--passphrase-file={words}", *more)
            assert expected in said, (expected, said)
            assert said.startswith(str(bad))
        assert not there.exists()
    assert "can't be read" in refused("restore", str(tmp_path / "nowhere"), "--check")


def test_the_settings_file_and_the_variables_are_remembered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "etc.toml"
    chosen.write_text('public_certificate = "/etc/ssl/x.pem"\npublic_key = "/etc/ssl/x.key"\n')
    monkeypatch.setenv("FABRIC_SERVER_LOG_LEVEL", "warning")
    done = run(
        "backup", f"--data={data}", "--plain", f"--config={chosen}", f"--output={tmp_path / 'b'}"
    )
    assert done.exit_code == 0
    assert "/etc/ssl/x.pem" in done.stderr
    monkeypatch.delenv("FABRIC_SERVER_LOG_LEVEL")
    said = ok("restore", str(tmp_path / "b"), f"--data={tmp_path / 'there'}")
    assert "log_level" in said
    assert (tmp_path / "there" / "fabric.toml").read_text() == chosen.read_text()


def test_a_store_that_the_settings_file_names_is_put_there(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "stores" / "mine.db"
    (data / "fabric.toml").write_text(f'store = "sqlite:///{store}"\n')
    ok("db", "migrate", f"--data={data}", f"--store=sqlite:///{data / 'fabric.sqlite'}")
    store.parent.mkdir()
    shutil.copy(data / "fabric.sqlite", store)
    file = made(data, "--plain")
    assert "there is a store" in refused("restore", str(file), f"--data={tmp_path / 'there'}")
    assert not (tmp_path / "there").exists()
    store.unlink()
    ok("restore", str(file), f"--data={tmp_path / 'there'}")
    assert store.exists()
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert "alice" in ok("keys", "list", f"--data={tmp_path / 'there'}")


def test_standard_input_and_output(data: Path, secret: Path, shell: Shell, tmp_path: Path) -> None:
    words = [PROGRAM, "backup", f"--data={data}", f"--passphrase-file={secret}", "--output=-"]
    piped = subprocess.run(words, capture_output=True, env=shell.environ)
    assert piped.returncode == 0, piped.stderr
    words = [PROGRAM, "restore", "-", "--check", f"--passphrase-file={secret}", "--json"]
    done = subprocess.run(words, input=piped.stdout, capture_output=True, env=shell.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["keys"] == 1


def test_a_server_that_runs_is_backed_up_and_never_restored_over(
    shell: Shell, server: Program, tmp_path: Path
) -> None:
    server.ready()
    shell.ok("fabric-server", "keys", "create", "alice")
    out = tmp_path / "out.tar"
    shell.ok("fabric-server", "backup", "--plain", f"--output={out}")
    done = shell.call("fabric-server", "restore", str(out), "--force")
    assert done.returncode == 2
    assert str(server.process.pid) in done.stderr
    assert "stop it" in done.stderr
    shell.ok("fabric-server", "restore", str(out), f"--data={tmp_path / 'there'}")
    names = {path.name for path in (tmp_path / "there").iterdir()}
    assert {"certs", "fabric.sqlite", "server.json", "spool"} <= names
    assert not {"server.sock", "ready.json"} & names


def test_what_root_restores_belongs_to_the_directorys_owner(data: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    file, there = made(data, "--plain"), tmp_path / "there"
    there.mkdir()
    os.chown(there, 1234, 1234)
    ok("restore", str(file), f"--data={there}")
    assert {path.stat().st_uid for path in there.rglob("*")} == {1234}
