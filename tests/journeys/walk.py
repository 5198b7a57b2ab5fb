"""A walk through the table: each block by its person, in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.code_blocks import Block, blocks
from tests.journeys.people import Town
from tests.journeys.table import FIRST_TOKEN, Key, Step
from tests.lab.netlab import NatLab

ECHO = f"{sys.executable} -m fabric_client.engines.echo --port 8080"
CHAT = """curl -sSi "$FABRIC_URL/v1/chat/completions" -H "Authorization: Bearer $FABRIC_KEY" \
 -H "x-fabric-timeout: 15" -d '{"model": "echo",
 "messages": [{"role": "user", "content": "Say hello."}]}'"""


@contextmanager
def town_in(directory: Path) -> Iterator[tuple[Town, NatLab]]:
    """Yield the people and their network; the owner has an engine, and nobody anything else."""
    if reason := NatLab.why_not():
        pytest.fail(f"NOT RUN: the journeys need network namespaces: {reason}")
    with NatLab(delay_ms=25) as lab:
        town = Town(lab, directory)
        try:
            town.owner.start(ECHO, until="8080")
            yield town, lab
        finally:
            town.leave()


def block_of(key: Key) -> Block:
    """Return the one block that the key means."""
    document, section, begins = key
    (found,) = (one for one in blocks(document, section) if one.first.startswith(begins))
    return found


def walk(town: Town, step: Step) -> None:
    """Run the step's block, and look for what it must say."""
    person = getattr(town, step.who)
    if step.who == "user":
        town.settle()
    block = block_of(step.block)
    if step.more:
        block = Block(block.document, block.sections, block.language, block.text + step.more + "\n")
    said = person.do(block, step.stand_ins, step.typed)
    for text in step.says:
        assert text in said, f"{text!r} is not in:\n{said}"


def to_the_first_token(town: Town) -> None:
    for step in FIRST_TOKEN:
        walk(town, step)
