"""The owner's commands, as a file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from fabric_client.owner import control
from fabric_client.owner.control import Control, ControlFile, Unreadable


def test_what_the_owner_says_is_kept_from_others_and_heard(tmp_path: Path) -> None:
    watched = ControlFile(tmp_path)
    assert watched.poll() is None
    assert watched.current == Control()
    said = control.update(tmp_path, paused=True, until=5.0)
    assert stat.S_IMODE(control.path_in(tmp_path).stat().st_mode) == 0o600
    assert watched.poll() is None
    assert watched.current == said == Control(at=said.at, paused=True, until=5.0)
    again = control.update(tmp_path, drain="run")
    assert again.at > said.at
    assert (again.paused, again.until, again.drain) == (True, 5.0, "run")
    watched.poll()
    assert watched.current == again
    resumed = control.update(tmp_path, paused=False)
    assert (resumed.paused, resumed.until) == (False, None)


def test_a_file_that_is_not_ours_changes_nothing_and_is_complained_of_once(tmp_path: Path) -> None:
    watched = ControlFile(tmp_path)
    said = control.update(tmp_path, paused=True)
    watched.poll()
    for text in ("", "{", "[]", '{"paused": 1}', '{"pause": true}'):
        control.path_in(tmp_path).write_text(text)
        assert "can't be read" in (watched.poll() or "")
        assert watched.poll() is None
        assert watched.current == said
    with pytest.raises(Unreadable):
        control.update(tmp_path, paused=False)
    control.path_in(tmp_path).unlink()
    watched.poll()
    assert watched.current == Control()
