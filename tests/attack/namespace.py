"""A network namespace for attackers: they can reach nothing else, and are not on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.attack.wire import HOST

_INSIDE = "FABRIC_ATTACK_INSIDE"


def enter_namespace(module: str) -> None:
    """Run this program, which is ``module``, again in a namespace of its own, once.

    Ends with a message where that is impossible.
    """
    if os.environ.get(_INSIDE):
        return
    unshare = shutil.which("unshare")
    if unshare is None or shutil.which("ip") is None:
        sys.exit("unshare and ip are needed (Debian and Ubuntu: apt install util-linux iproute2)")
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    words = [unshare, "--net", *own, sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(unshare, words, {**os.environ, _INSIDE: "1"})


def set_up_namespace() -> None:
    """Give the namespace addresses; those of a whole network are this machine's."""
    for words in (("link", "set", "lo", "up"), ("addr", "add", f"{HOST}/15", "dev", "lo")):
        subprocess.run(("ip", *words), check=True)
