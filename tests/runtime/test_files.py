"""Files are replaced as a whole, and belong to the owner of their directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.files import write


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "first")
    with path.open() as before:
        write(path, "second", secret=True)
        assert before.read() == "first"
    assert path.read_text() == "second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        write(tmp_path / "missing" / "file", "text")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 10001, 10002)
    write(tmp_path / "key", "secret", secret=True)
    status = (tmp_path / "key").stat()
    assert (status.st_uid, status.st_gid) == (10001, 10002)
