"""Programs that run for long rarely look for garbage, and not in what they started with."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from runtime import garbage
before = [[]]
garbage.collect_rarely()
after = [[]]
seen = {id(one) for one in gc.get_objects()}
print(id(before) in seen, id(after) in seen, gc.get_threshold() == garbage.THRESHOLD)
"""


def test_what_exists_at_the_start_is_in_no_later_collection() -> None:
    command = [sys.executable, "-c", PROGRAM]  # it is for the whole process
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "True", "True"]
