"""Which Pythons ``make test-pythons`` finds."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.pythons import ends, pythons


def script(path: Path, says: str, code: int = 0) -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_one_python_of_each_version_is_used_and_nothing_else(tmp_path: Path) -> None:
    newer = script(tmp_path / "newer", "CPython 3.14.2")
    found = pythons(
        [
            newer,
            script(tmp_path / "same", "CPython 3.14.2"),
            script(tmp_path / "old", "CPython 3.10.9"),
            script(tmp_path / "without-wheels", "CPython 3.15.2"),
            script(tmp_path / "other", "PyPy 3.11.9"),
            script(tmp_path / "not-chosen", "pyenv: python3.12: command not found", 127),
            tmp_path / "nothing",
            Path(sys.executable),
        ]
    )
    assert [(one.path, one.name) for one in found] == [
        (Path(sys.executable), ".".join(map(str, sys.version_info[:3]))),
        (newer, "3.14.2"),
    ]
    assert ends(found) == found
    assert ends([found[0], *found]) == found
    assert ends([]) == []
