"""Files that pass a secret to a library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.passing_files import passing_file


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_passing_file_is_read_as_often_as_wanted_and_gone_then(in_memory: bool) -> None:
    with passing_file("a secret\n", in_memory=in_memory) as path:
        assert [Path(path).read_text() for _ in range(2)] == ["a secret\n"] * 2
    assert not os.path.exists(path)


def test_a_passing_file_on_the_disk_is_for_its_user_only_and_has_a_name_of_its_own() -> None:
    with (
        passing_file("a", in_memory=False) as one,
        passing_file("b", in_memory=False) as other,
    ):
        assert [Path(path).read_text() for path in (one, other)] == ["a", "b"]
        assert os.stat(one).st_mode & 0o077 == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_passing_file_is_gone_also_after_an_error(in_memory: bool) -> None:
    with pytest.raises(ZeroDivisionError), passing_file("a", in_memory=in_memory) as path:
        1 / 0  # noqa: B018
    assert not os.path.exists(path)
