"""``fabric-server restore``: where it puts things, and what it takes back when it can't."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fabric_server.__main__ import app
from fabric_server.backup.placing import moving, own_path
from fabric_server.backup.problem import BackupProblem


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def ok(*words: str) -> str:
    done = run(*words)
    assert done.exit_code == 0, (words, done, done.exception)
    return str(done.stdout)


def refused(*words: str) -> str:
    done = run(*words)
    assert isinstance(done.exception, BackupProblem), (words, done, done.exception)
    return str(done.exception)


def server(data: Path, *words: str) -> Path:
    """Make a server's data with a key of alice."""
    ok("init", f"--data={data}", "--address=gpu.example.org", *words)
    ok("keys", "create", "alice", f"--data={data}", *words)
    return data


def made(data: Path, *words: str) -> Path:
    out = data.parent / "backups"
    out.mkdir(exist_ok=True)
    answer = ok("backup", f"--data={data}", f"--output={out}", "--plain", "--json", *words)
    return Path(json.loads(answer)["path"])


def keys(data: Path, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ok("keys", "list", f"--data={data}", *words, "--json"))
    return found


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["below", "real", "link", "both"])
def test_the_store_that_was_restored_is_the_one_that_the_server_opens(
    tmp_path: Path, way: str, force: bool
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    data, store = {
        "below": (real, real / "db" / "deep" / "fabric.sqlite"),
        "real": (link, real / "fabric.sqlite"),
        "link": (real, link / "fabric.sqlite"),
        "both": (link, link / "db" / "fabric.sqlite"),
    }[way]
    chosen = f"--store=sqlite:///{store}"
    server(data, chosen)
    file = made(data, chosen)
    if force:
        ok("keys", "create", "later", f"--data={data}", chosen)
    else:
        shutil.rmtree(real)
        real.mkdir()
    more = ["--force"] if force else []
    ok("restore", str(file), f"--data={data}", chosen, *more)
    assert store.exists()
    assert [key["name"] for key in keys(data, chosen)] == ["alice"]
    if force:
        (kept,) = real.glob("before-restore-*")
        old = kept / store.relative_to(data if way in ("below", "both") else store.parent)
        assert len(keys(kept, f"--store=sqlite:///{old}")) == 2


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_was_moved_is_moved_back_when_a_rename_fails(tmp_path: Path, elsewhere: bool) -> None:
    store = tmp_path / "stores" / "fabric.sqlite"
    chosen = [f"--store=sqlite:///{store}"] if elsewhere else []
    data = server(tmp_path / "server", *chosen)
    (data / "lost+found").mkdir()
    (data / "lost+found" / "1").write_text("of the backup")
    file = made(data, *chosen)
    (data / "lost+found" / "2").write_text("of this file system")
    ok("keys", "create", "later", f"--data={data}", *chosen)
    before = everything(tmp_path)
    said = refused("restore", str(file), f"--data={data}", "--force", *chosen)
    assert "nothing that was there was changed" in said
    assert "lost+found" in said
    assert everything(tmp_path) == before
    assert not [*data.glob("before-*"), *tmp_path.rglob(".backup-*")]
    assert len(keys(data, *chosen)) == 2


def test_what_can_not_be_moved_back_is_listed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with pytest.raises(BackupProblem) as caught, moving() as moves:
        kept = moves.make(tmp_path / "kept")
        moves.move(tmp_path / "one", kept / "one")
        moves.move(tmp_path / "two", kept / "two")
        (tmp_path / "one").write_text("another's")
        moves.move(tmp_path / "missing", kept / "missing")
    said = str(caught.value)
    assert f"{tmp_path / 'one'} was moved to {kept / 'one'}" in said
    assert "missing" in said
    assert "two was" not in said
    assert (tmp_path / "one").read_text() == "another's"
    assert (kept / "one").read_text() == "one"
    assert (tmp_path / "two").read_text() == "two"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_the_old_store_knows_as_revoked_stays_revoked(tmp_path: Path, elsewhere: bool) -> None:
    store = (
        tmp_path / "stores" / "fabric.sqlite" if elsewhere else tmp_path / "server/fabric.sqlite"
    )
    chosen = f"--store=sqlite:///{store}"
    data = server(tmp_path / "server", chosen)
    insert = (
        "INSERT INTO nodes (id, name, public_key_sha256, created_at, epoch, platform, version,"
        " revision) VALUES ('node_1', '', x'00', 1.0, 0, '', '', 1)"
    )
    with sqlite3.connect(store) as connection:
        connection.execute(insert)
    connection.close()
    file = made(data, chosen)
    (key,) = keys(data, chosen)
    ok("keys", "revoke", key["id"], f"--data={data}", chosen)
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE nodes SET revoked_at = 2.0")
    connection.close()
    words = ("restore", str(file), f"--data={data}", chosen, "--force", "--json")
    done = json.loads(ok(*words))
    assert (done["revoked_again"], done["keys"], done["nodes"]) == (2, 0, 0)
    assert done["revocations_before"] == "ok"
    assert [key["state"] for key in keys(data, chosen)] == ["revoked"]


def test_a_damaged_old_store_is_no_hindrance_and_is_told(tmp_path: Path) -> None:
    data = server(tmp_path / "server")
    file = made(data)
    (data / "fabric.sqlite").write_bytes(b"no database" * 1000)
    said = ok("restore", str(file), f"--data={data}", "--force")
    assert "The store before can't say what was revoked" in said
    assert len(keys(data)) == 1


def test_what_root_makes_elsewhere_belongs_to_the_datas_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files to others")
    file = made(server(tmp_path / "server"))
    there, store = tmp_path / "there", tmp_path / "a" / "b" / "fabric.sqlite"
    there.mkdir()
    os.chown(there, 1234, 1234)
    ok("restore", str(file), f"--data={there}", f"--store=sqlite:///{store}")
    owners = {path.stat().st_uid for path in (store, *store.parents[:2])}
    assert owners == {1234}
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert [path.name for path in store.parent.iterdir()] == ["fabric.sqlite"]


def test_links_that_lead_out_are_left_out_and_told(tmp_path: Path) -> None:
    data = server(tmp_path / "server")
    (tmp_path / "secret").write_text("of another user")
    (data / "inside").symlink_to(data / "server.json")
    for name, to in (("out", "secret"), ("dangling", "nothing"), ("round", "server/../secret")):
        (data / name).symlink_to(tmp_path / to)
    file = tmp_path / "backup.tar"
    done = run("backup", f"--data={data}", "--plain", f"--output={file}")
    assert done.exit_code == 0
    for name in ("out", "dangling", "round"):
        assert f"not in the backup: {data / name}" in done.stderr
    assert b"of another user" not in file.read_bytes()
    there = tmp_path / "there"
    ok("restore", str(file), f"--data={there}")
    assert (there / "inside").read_bytes() == (data / "server.json").read_bytes()
    assert not (there / "out").exists()


def test_nothing_to_which_a_link_leads_is_given_away(tmp_path: Path) -> None:
    given: list[int] = []
    for name in ("file", "directory"):
        path, link = tmp_path / name, tmp_path / f"to-{name}"
        path.mkdir() if name == "directory" else path.touch()
        link.symlink_to(path)
        with pytest.raises(OSError, match="to-"):
            own_path(link, given.append)
        assert not given
    own_path(tmp_path / "file", given.append)
    own_path(tmp_path / "directory", given.append)
    assert len(given) == 2
