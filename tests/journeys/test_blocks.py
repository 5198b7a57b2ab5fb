"""Every code block of the documents for people is run by a journey, or there is a reason."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.code_blocks import ROOT, Block, blocks
from tests.journeys.table import (
    DOCUMENTS,
    FIRST_TOKEN,
    LATER,
    NOT_RUN,
    SETTINGS_BLOCKS,
    Key,
)

STEPS: list[Key] = [step.block for step in (*FIRST_TOKEN, *LATER)]
NAMED: list[Key] = [*STEPS, *SETTINGS_BLOCKS, *NOT_RUN]


def names(key: Key, block: Block) -> bool:
    document, section, begins = key
    here = (block.document, block.sections[-1])
    return here == (document, section) and block.first.startswith(begins)


ALL = [block for document in DOCUMENTS for block in blocks(document)]


@pytest.mark.parametrize("block", ALL, ids=lambda one: f"{one.document}-{one.first[:30]}")
def test_each_block_is_run_or_there_is_a_reason(block: Block) -> None:
    found = [key for key in NAMED if names(key, block)]
    assert found, (
        f"{block.document}, {block.sections[-1]!r}: no journey runs the block that begins with "
        f"{block.first!r}. Add a step or, with the reason, a row of NOT_RUN to "
        "tests/journeys/table.py."
    )
    assert len(found) == 1, found


def test_no_row_is_of_a_block_that_is_gone() -> None:
    gone = [key for key in NAMED if not any(names(key, block) for block in ALL)]
    assert not gone
    assert not [key for key, count in Counter(NAMED).items() if count > 1]


@pytest.mark.parametrize(("key", "reason"), NOT_RUN.items(), ids=str)
def test_what_a_reason_refers_to_exists(key: Key, reason: str) -> None:
    assert len(reason) > 6
    for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason):
        assert (ROOT / path).exists(), path


def test_the_debian_blocks_are_those_of_the_install_test() -> None:
    here = [block for block in ALL if "Debian 12 and 13" in block.sections]
    assert here == list(blocks("docs/install.md", "Debian 12 and 13"))
    assert len(here) >= 5
