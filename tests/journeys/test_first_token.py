"""An operator, a node's owner and a user walk through the documents, up to the first token.

Server, node and engine are real programs in network namespaces; the node and the user are behind
NAT, with 50 ms between.  The engine is the echo.  ``make journeys`` goes on from there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.table import SETTINGS_BLOCKS, Key
from tests.journeys.walk import block_of, to_the_first_token, town_in


def test_from_nothing_to_the_first_token(tmp_path: Path) -> None:
    with town_in(tmp_path) as (town, _):
        to_the_first_token(town)


@pytest.mark.parametrize(("key", "program"), SETTINGS_BLOCKS.items(), ids=str)
def test_settings_in_the_documents_are_taken(key: Key, program: str, tmp_path: Path) -> None:
    file = tmp_path / "fabric.toml"
    file.write_text(block_of(key).text)
    names = {"node": ("fabric-client", "doctor"), "server": ("fabric-server", "check-config")}
    command, words = names[program]
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), words, "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "fabric.toml:" not in done.stderr, done.stderr
    assert done.returncode in (0, 1), done.stderr  # 2: the settings have an error
