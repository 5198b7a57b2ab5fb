"""Runs the server with few file descriptors, as a small machine does.

python -m tests.attack.limited DESCRIPTORS COMMAND…      (the words after fabric-server)
"""

from __future__ import annotations

import resource
import runpy
import sys

if __name__ == "__main__":
    most = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sys.argv = ["fabric-server", *sys.argv[2:]]
    runpy.run_module("fabric_server", run_name="__main__", alter_sys=True)
