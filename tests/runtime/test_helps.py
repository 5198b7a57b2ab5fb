"""What ``--help`` of each command of the three programs says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperOption

from consumer.__main__ import app as consumer
from fabric_client.__main__ import app as client
from fabric_server.__main__ import app as server
from runtime.output import LateCommand

PROGRAMS = {"fabric-server": server, "fabric-client": client, "fabric-consumer": consumer}

PYTHON = re.compile(
    r"<(?![a-z|]+>)\w|0x[0-9a-f]{4,}|\bobject at\b|MISSING|UNSET|\b(None|True|False)\b"
    r"|PosixPath|typing\.|\bclass\b|default: ?\)|\('\w*',"
)
"""Python's spelling of things; ``<str>`` and ``<a|b>`` are typer's."""


def helps() -> Iterator[tuple[str, Any, str]]:
    def walk(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any, str]]:
        if isinstance(command, LateCommand):
            command = command.load()
        last = name.rpartition(" ")[2]
        context = command.context_class(command, info_name=last, parent=parent)
        yield name, command, " ".join(command.get_help(context).split())
        for below, one in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {below}", one, context)

    for program, app in PROGRAMS.items():
        yield from walk(program, typer.main.get_command(app), None)


HELPS = {name: (command, text) for name, command, text in helps()}


@pytest.mark.parametrize("name", HELPS)
def test_a_help_is_in_words_of_people(name: str) -> None:
    command, text = HELPS[name]
    assert not PYTHON.search(text), PYTHON.search(text)
    for parameter in command.params:
        if isinstance(parameter, TyperOption):
            assert parameter.help or parameter.name == "help", parameter.name


LATE = {
    f"{program} {name}": one
    for program, app in PROGRAMS.items()
    for name, one in getattr(typer.main.get_command(app), "commands", {}).items()
}


@pytest.mark.parametrize("name", LATE)
def test_the_list_of_commands_says_what_the_help_of_each_begins_with(name: str) -> None:
    listed, itself = LATE[name], LATE[name].load()
    for limit in (20, 45, 60, 500):
        assert listed.get_short_help_str(limit) == itself.get_short_help_str(limit)


def test_a_setting_without_a_default_is_said_to_be_required() -> None:
    _, text = HELPS["fabric-consumer"]
    assert "as on the server. (required) --bus" in text
    assert text.count("(required)") == 2  # store and bus


def test_only_programs_with_a_directory_name_the_settings_file_in_it() -> None:
    for name in ("fabric-server up", "fabric-client run"):
        assert "Default: fabric.toml in data, if it exists." in HELPS[name][1]
    assert "fabric.toml" not in HELPS["fabric-consumer"][1]
    assert "or in the file of --config, as log_level" in HELPS["fabric-consumer"][1]
