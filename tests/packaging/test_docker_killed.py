"""``make docker-test`` leaves nothing behind when it is killed, and takes nothing of others.

Docker itself is replaced: few machines that run the tests have it.  The stand-in keeps the names of
containers, volumes and networks as files, and its containers never become healthy.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.checkout import ROOT

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests find processes in /proc"
)

STAND_IN = r"""#!/bin/sh
# No Docker: it only notes what it is asked.
mkdir -p "$STATE/container" "$STATE/volume" "$STATE/network"
echo "$*" >> "$STATE/log"
kind=$1
case "$*" in
    "ps --all "*) ls "$STATE/container" ;;
    "volume ls "* | "network ls "*) ls "$STATE/$kind" ;;
    "rm --force --volumes "*) rm -f "$STATE/container/$4" ;;
    "volume rm --force "*) rm -f "$STATE/volume/$4" ;;
    "network rm "*) rm -f "$STATE/network/$3" ;;
    "run "*" --name "*)
        touch "$STATE/network/${COMPOSE_PROJECT_NAME}_default"
        while [ $# -gt 0 ]; do
            [ "$1" = --name ] && touch "$STATE/container/$2"
            [ "$1" = --volume ] && touch "$STATE/volume/${2%%:*}"
            shift
        done
        [ -z "$HANG" ] || { echo hangs > "$FIFO"; exec sleep 600; }
        ;;
    "image inspect "*) echo 1000000 ;;
    "inspect "*) [ -n "$HANG" ] || echo asked > "$FIFO"; echo starting ;;
esac
"""


class Lab:
    """A directory with the stand-in on its path, and the runs that were started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir()
        self._fifo = directory / "fifo"
        os.mkfifo(self._fifo)
        self._bin = directory / "bin"
        self._bin.mkdir()
        docker = self._bin / "docker"
        docker.write_text(STAND_IN)
        docker.chmod(0o755)
        self.runs: list[subprocess.Popen[str]] = []

    def begin(self, *, hang: bool = False) -> subprocess.Popen[str]:
        """Start a run, and return it once its first container is there.

        ``hang``: the command that starts it does not end.
        """
        run = subprocess.Popen(
            [ROOT / "docker/test.sh", "server"],
            env={
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "HOME": str(self.state),
                "TMPDIR": str(self.directory),
                "STATE": str(self.state),
                "FIFO": str(self._fifo),
                "HANG": "1" if hang else "",
                "BASE": "stand-in",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.runs.append(run)
        assert self._fifo.read_text() in ("hangs\n", "asked\n")
        return run

    def directories(self, run: subprocess.Popen[str]) -> list[Path]:
        return list(self.directory.glob(f"fabric-test-{run.pid}-*"))

    def group_of(self, run: subprocess.Popen[str]) -> int:
        """Return the process group of a run's tests."""
        (directory,) = self.directories(run)
        return int((directory / "tests").read_text().split()[0])

    def names(self, kind: str = "*") -> list[str]:
        return sorted(path.name for path in self.state.glob(f"{kind}/*"))

    def put(self, kind: str, name: str) -> None:
        (self.state / kind).mkdir(exist_ok=True)
        (self.state / kind / name).touch()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    for run in lab.runs:
        if run.poll() is None:
            run.terminate()
        run.communicate(timeout=60)


def is_there(group: int) -> bool:
    """Return whether a process of the group runs still."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its = stat.read_text().rpartition(") ")[2].split()[:3]
            if int(its) == group and state != "Z":
                return True
    return False


@pytest.mark.parametrize("hang", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_removes_what_it_has_made(
    lab: Lab, number: signal.Signals, hang: bool
) -> None:
    run = lab.begin(hang=hang)
    group = lab.group_of(run)
    prefix = f"fabric-test-{run.pid}-"
    assert [len(lab.names(kind)) for kind in ("container", "volume", "network")] == [1, 1, 1]
    assert all(name.startswith(prefix) for name in lab.names("[cvn]*"))
    os.kill(run.pid, number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 128 + number, said
    assert lab.names("[cvn]*") == []
    assert lab.directories(run) == []
    assert not is_there(group)


def test_what_a_killed_run_has_left_is_removed_by_the_next_start(lab: Lab) -> None:
    killed = lab.begin(hang=True)
    group = lab.group_of(killed)
    killed.kill()
    killed.wait()
    left = lab.names("[cvn]*")
    assert len(left) == 3
    assert is_there(group)

    stat = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(") ")[2].split()
    own = f"fabric-test-{os.getpid()}-{stat[19]}"
    reused = f"fabric-test-{os.getpid()}-{int(stat[19]) - 1}"
    for kind in ("container", "volume", "network"):
        for name in ("postgres", "fabric-test-mine", "fabric-test-1", f"{own}-x", f"{reused}-x"):
            lab.put(kind, name)
    following = lab.begin()
    names = set(lab.names("[cvn]*"))
    assert not names.intersection(left)
    assert f"{reused}-x" not in names, "another process has that id now"
    assert {"postgres", "fabric-test-mine", "fabric-test-1", f"{own}-x"} <= names
    assert not is_there(group)
    assert lab.directories(killed) == []

    following.terminate()
    following.communicate(timeout=60)
    for kind in ("container", "volume", "network"):
        expected = sorted(["postgres", "fabric-test-mine", "fabric-test-1", f"{own}-x"])
        assert lab.names(kind) == expected


def test_two_runs_at_once_leave_each_other_alone(lab: Lab) -> None:
    first, second = lab.begin(hang=True), lab.begin(hang=True)
    assert len(lab.names("container")) == 2
    first.terminate()
    first.communicate(timeout=60)
    (name,) = lab.names("container")
    assert name.startswith(f"fabric-test-{second.pid}-")
    assert is_there(lab.group_of(second))


def test_a_run_that_was_killed_does_not_go_on_with_its_next_step(lab: Lab) -> None:
    run = lab.begin()
    group = lab.group_of(run)
    run.kill()
    run.wait()
    # Each look at its health, and then its end; it may have ended before, and nobody writes then.
    asked = os.open(lab.state.parent / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    end = time.monotonic() + 60
    while is_there(group) and time.monotonic() < end:
        select.select([asked], [], [], 1)
        with contextlib.suppress(BlockingIOError):
            os.read(asked, 1)
    os.close(asked)
    assert not is_there(group)
