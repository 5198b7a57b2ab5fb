"""The limit of open files, raised as far as the system lets."""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

SCRIPT = """
import resource
from runtime.descriptors import allow_many_files, open_files_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
print(open_files_limit())
allow_many_files()
print(open_files_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_becomes_the_hard_one() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["100", "300 (300, 300)"]
