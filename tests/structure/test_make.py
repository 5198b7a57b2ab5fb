"""What the Makefile names is there, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_file_that_make_journeys_names_has_tests_that_are_collected() -> None:
    """pytest leaves out a file that is named beside its directory, and says nothing."""
    shown = subprocess.run(
        ["make", "-n", "journeys"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    [command] = [line.split() for line in shown.splitlines() if "-m pytest" in line]
    paths = [word for word in command if word.startswith("tests/")]
    assert len(paths) > 3
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-n", "0", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for path in paths:
        assert f"\n{path}::" in f"\n{collected}", path
