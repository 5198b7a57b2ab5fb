"""Which secrets ``docker/up.sh`` makes, and who may read them.

Docker itself is replaced, because few machines that run the tests have it: the stand-in answers
like the containers, and does in the real directory what would be done in one that mounts it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

DOCKER = Path(__file__).parents[2] / "docker"

STAND_IN = r"""#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
    *"cat /var/lib/fabric/certs/ca.pem") echo CA ;;
    *"keys create prometheus"*) echo mk-fab-secret ;;
    *"keys create first") echo sk-fab-secret ;;
    *"nodes invite"*) echo fjt1_secret ;;
    *"--entrypoint id prometheus -u") stat -c 'mode %a' secrets/metrics.key >> "$LOG" && id -u ;;
    "run "*" --entrypoint sh "*)
        while [ "$1" != -c ]; do shift; done
        script=$(printf %s "$2" | sed "s|/secrets/|$PWD/secrets/|g")
        shift 2
        sh -c "$script" "$@"
        ;;
esac
"""


def test_only_prometheus_reads_the_key_for_metrics_and_it_reads_only_these(tmp_path: Path) -> None:
    for name in ("up.sh", "setup.sh", "compose.yaml"):
        shutil.copy(DOCKER / name, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(STAND_IN)
    (programs / "docker").chmod(0o755)
    log = tmp_path / "log"
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "LOG": str(log)}

    def up(*words: str) -> list[str]:
        log.write_text("")
        done = subprocess.run(
            ["sh", "-c", 'umask 022; exec ./up.sh "$@"', "up.sh", *words],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    key = tmp_path / "secrets" / "metrics.key"
    first = up("--monitoring", "gpu.example.org")
    [made] = [line for line in first if "keys create prometheus" in line]
    assert made.endswith("keys create prometheus --management --scope metrics")
    assert "mode 600" in first, "nobody else could read it, not even for a moment"
    assert key.read_text() == "mk-fab-secret\n"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    [given] = [line for line in first if line.startswith("run ")]
    assert given.endswith(f" - metrics.key {os.getuid()}"), "to the user of the container"

    key.chmod(0o644)  # as earlier releases made it
    again = up("--monitoring")
    assert not any("keys create" in line for line in again)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for secret in ("first.key", "redis-password"):
        assert stat.S_IMODE((key.parent / secret).stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
