"""When a node takes its settings file for changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from fabric_client.config import PREFIX, Config
from fabric_client.reload import NodeSettings
from runtime.flags import read
from runtime.settings import Conflict


def settings(directory: Path, text: str = "") -> NodeSettings:
    (directory / "fabric.toml").write_text(text)
    config = read(Config, PREFIX, environ={}, flags={"data": str(directory)}, file=None)
    return NodeSettings(config)


def test_a_file_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    node = settings(tmp_path, 'models = ["open"]\n')
    assert not node.file_has_changed()
    file = tmp_path / "fabric.toml"
    file.write_text("")  # an editor has emptied it: read now, everything would be offered
    assert not node.file_has_changed()
    file.write_text('models = ["open", "!open-private"]\n')
    assert not node.file_has_changed()
    assert node.file_has_changed()
    assert node.read_again().applied == ["models"]
    assert not node.file_has_changed()


@pytest.mark.parametrize("gone", [True, False])
def test_a_file_that_is_gone_or_empty_lifts_no_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, gone: bool
) -> None:
    node = settings(tmp_path, 'models = ["open"]\n')
    file = tmp_path / "fabric.toml"
    file.unlink() if gone else file.write_text("")
    assert not any(node.file_has_changed() for _ in range(4))
    assert [record.message[:30] for record in caplog.records] == ["settings file is gone or empty"]
    file.write_text('models = ["open", "second"]\n')
    assert [node.file_has_changed() for _ in range(2)] == [False, True]
    file.unlink()
    assert node.read_again().applied == ["models"], "its owner asks for it"


def test_an_error_is_told_once_and_what_was_good_stays(tmp_path: Path) -> None:
    node = settings(tmp_path, "slots = 2\n")
    (tmp_path / "fabric.toml").write_text("slots = 3\nslot = 4\n")
    assert not node.file_has_changed()
    assert node.file_has_changed()
    assert "slot" in node.read_again().error
    assert node.config.slots == 2
    assert not node.file_has_changed()
    (tmp_path / "fabric.toml").write_text("slots = 3\n")
    assert node.read_again().applied == ["slots"]
    assert node.config.slots == 3


def test_what_needs_a_restart_is_told_each_time(tmp_path: Path) -> None:
    node = settings(tmp_path)
    (tmp_path / "fabric.toml").write_text('data = "elsewhere"\nslots = 2\n')
    config = read(Config, PREFIX, environ={}, flags={}, file=tmp_path / "fabric.toml")
    node = NodeSettings(config)
    (tmp_path / "fabric.toml").write_text('data = "third"\nslots = 3\n')
    first, second = node.read_again(), node.read_again()
    assert (first.applied, first.needs_restart) == (["slots"], ["data"])
    assert (second.applied, second.needs_restart) == ([], ["data"])


@dataclass(frozen=True, kw_only=True)
class Together(Config):
    """Settings of which one is applied at once, and one that must fit it is not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.slots == 2) != (self.proxy == "none"):
            raise Conflict("slots and proxy do not fit.", "slots", "proxy")


def test_settings_that_fit_only_after_a_restart_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fabric.toml"
    file.write_text("")
    node = NodeSettings(
        read(Together, PREFIX, environ={}, flags={"data": str(tmp_path)}, file=None)
    )
    file.write_text('slots = 2\nproxy = "none"\n')
    assert "Restart the node" in node.read_again().error
    assert node.config.slots is None
