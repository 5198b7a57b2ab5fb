"""A disk that is full or can't be written loses no ledger entry."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from ledger.records import HEARTBEATS, LEDGER
from tests.contracts.samples import entry
from tests.server.storage.spool.spools import (
    MIB,
    SIZE,
    crashed,
    publish,
    reopened,
    take,
    take_all,
)


def test_a_disk_that_takes_no_more_holds_up_nothing_and_is_tried_again(directory: Path) -> None:
    """With a real limit on the size of files, in a process of its own."""
    program = (
        "import asyncio, json, resource, sys\n"
        "from pathlib import Path\n"
        "from ledger.records import HEARTBEATS, LEDGER\n"
        "from fabric_server.storage.spool.options import SpoolOptions\n"
        "from fabric_server.storage.spool.spool import Spool\n"
        "from tests.contracts.samples import beat, entry\n"
        "async def main():\n"
        "    options = SpoolOptions(retry_seconds=0.0)\n"
        "    spool = Spool.open(Path(sys.argv[1]), limit=1 << 30, options=options)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "    for number in range(100):\n"
        "        spool.publish(LEDGER, entry(number))\n"
        "        spool.publish(HEARTBEATS, beat(number))\n"
        "    said = [spool.problem, spool.dropped, spool.waiting, spool.full]\n"
        "    batch = await spool.take(1, 40, 0)\n"
        "    said.append([e.request_id for e in batch.ledger])\n"
        "    await spool.commit()\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "    spool.publish(LEDGER, entry(100))\n"
        "    spool.publish(HEARTBEATS, beat(100))\n"
        "    said += [spool.problem, spool.waiting]\n"
        "    print(json.dumps(said), flush=True)\n"
        "    import os; os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    problem, dropped, waiting, full, taken, later, waiting_later = json.loads(done.stdout)
    assert "can't be written: File too large" in problem
    assert dropped[LEDGER] == 0
    assert dropped[HEARTBEATS] > 50
    assert waiting == {LEDGER: 100, HEARTBEATS: 100 - dropped[HEARTBEATS]}
    assert not full
    assert taken == [f"req_{number:08d}" for number in range(40)]
    assert later is None
    assert waiting_later[LEDGER] == 61
    assert asyncio.run(reopened(directory)) == [*range(40, 101)]
    assert list(directory.rglob("*.damaged")) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root may mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_disk_loses_no_ledger_entry(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    directory = tiny_disk / "spool"
    options = SpoolOptions(segment_bytes=8 * SIZE, retry_seconds=0.0)
    spool = Spool.open(directory, limit=MIB, options=options)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(30_000))
    publish(spool, range(100, 200))
    assert spool.problem is not None
    assert spool.problem.endswith("can't be written: No space left on device; free some space")
    assert await take(spool, 30) == [*range(100, 130)]
    publish(spool, range(200, 210))
    ballast.unlink()
    await spool.commit()
    publish(spool, range(210, 230))  # each writes some of what waits
    assert await take(spool, 10) == [*range(130, 140)]
    assert spool.problem is None
    copy = shutil.copytree(directory, tiny_disk.parent / "copy")
    assert await reopened(copy) == [*range(130, 230)]
    assert await take_all(spool) == [*range(140, 230)]
    assert [r.message for r in caplog.records if r.name == "fabric.spool"] == [
        "the spool can't be written",
        "the spool can be written again",
    ]
    await spool.close()


async def test_ledger_entries_that_can_not_be_written_are_bounded(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    options = SpoolOptions(segment_bytes=SIZE, max_unwritten=20)
    spool = Spool.open(directory, limit=MIB, options=options, clock=lambda: now[0])
    publish(spool, range(100, 105))
    (directory / LEDGER).rename(directory / "away")
    publish(spool, range(105, 125))
    assert not spool.full
    publish(spool, range(125, 130))
    assert spool.full
    assert spool.dropped[LEDGER] == 5
    assert "No such file" in (spool.problem or "")
    assert spool.waiting[LEDGER] == 25
    (directory / "away").rename(directory / LEDGER)
    assert await take(spool, 7) == [*range(100, 107)]
    assert spool.problem is not None  # it is too early to try again
    await spool.commit()
    now[0] += 1.0
    publish(spool, range(130, 131))
    assert spool.problem is None
    assert await take(spool, 100) == [*range(107, 125), 130]
    after = Spool.open(crashed(directory), limit=MIB)
    while spool.full:
        await spool.take(1, 1, 0)
        await spool.commit()
    assert await take_all(after) == [*range(107, 110)] or after.waiting[LEDGER] == 0
    await after.close()
    await spool.close()


async def test_what_could_not_be_written_is_written_at_closing(directory: Path) -> None:
    spool = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=SIZE))
    (directory / LEDGER).rename(directory / "away")
    publish(spool, range(100, 110))
    (directory / "away").rename(directory / LEDGER)
    await spool.close()
    await spool.close()
    spool.publish(LEDGER, entry(1))
    assert spool.dropped[LEDGER] == 1
    assert await reopened(directory) == [*range(100, 110)]


async def test_what_is_lost_at_closing_is_told(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool.open(directory, limit=MIB)
    shutil.rmtree(directory / LEDGER)
    publish(spool, range(3))
    await spool.close()
    assert [(r.message, vars(r).get("count")) for r in caplog.records] == [
        ("the spool can't be written", None),
        ("records could not be written and are lost", 3),
    ]
