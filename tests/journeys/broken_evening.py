"""A broken evening, run by ``make journeys``: what each person sees of each fault.

Each row breaks one thing in a fabric that works, and says what the user's answer, the owner's
doctor, the operator's commands and the logs have of it.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.code_blocks import blocks
from tests.journeys.people import Person, Town
from tests.journeys.walk import CHAT, ECHO, to_the_first_token, town_in
from tests.lab.netlab import NatLab, in_namespace
from tests.lab.wrong_clock import wrong_clock

RUN = "fabric-client run"
UP = "fabric-server up"
CLOSED = "add rule ip lab passing_first tcp dport 17001 drop"
CHAIN = "add chain ip lab passing_first { type filter hook forward priority -1; }"


@dataclass(frozen=True)
class Evening:
    """A fabric that works, and the lab in which it stands."""

    town: Town
    lab: NatLab

    def firewall(self, rules: str) -> None:
        subprocess.run(
            in_namespace(self.lab.router, ["nft", rules]), check=True, capture_output=True
        )


@dataclass(frozen=True)
class Fault:
    """How one thing is broken, mended, and seen: texts, each of which must appear in a minute."""

    breaks: Callable[[Evening], object]
    mends: Callable[[Evening], object]
    user: str
    owner: str = ""
    """Of ``fabric-client doctor``."""
    operator: tuple[str, str] = ("", "")
    """A command, and what it says."""
    log: tuple[str, str] = ("", "")
    """Whose program, and what a line of its log has."""


def stop_engine(evening: Evening) -> None:
    evening.town.owner.programs.pop(ECHO).stop()


def start_engine(evening: Evening) -> None:
    evening.town.owner.start(ECHO, until="8080")


def take_a_wrong_key(evening: Evening) -> None:
    key = evening.town.operator.known["sk-fab-…"]
    evening.town.operator.known["sk-fab-…"] = f"{key[:-1]}{'b' if key[-1] == 'a' else 'a'}"
    evening.town.operator.known["right"] = key


def take_the_right_key(evening: Evening) -> None:
    evening.town.operator.known["sk-fab-…"] = evening.town.operator.known.pop("right")


def close_17001(evening: Evening) -> None:
    evening.firewall(f"{CHAIN}; {CLOSED}")
    evening.town.owner.start(RUN)


def open_17001(evening: Evening) -> None:
    evening.firewall("delete chain ip lab passing_first")
    evening.town.owner.start(RUN)


def set_the_clock_wrong(evening: Evening) -> None:
    evening.town.owner.environ |= wrong_clock("+2h")
    evening.town.owner.start(RUN)


def set_the_clock_right(evening: Evening) -> None:
    for name in wrong_clock("+2h"):
        del evening.town.owner.environ[name]
    evening.town.owner.start(RUN)


def nothing(evening: Evening) -> None:
    """Break nothing: the mistake is in the command."""


FAULTS = {
    "the engine is stopped": Fault(
        stop_engine,
        start_engine,
        user='"code":"no_capacity"',
        owner="no engine was found",
        operator=("fabric-server nodes list", "is the engine running?"),
        log=(RUN, '"event":"engine out of use"'),
    ),
    "the key is wrong": Fault(
        take_a_wrong_key,
        take_the_right_key,
        user='"code":"invalid_api_key"',
        owner="findings are good",
        operator=("fabric-server doctor", "ok "),
        log=(UP, "wrong keys refused"),
    ),
    "port 17001 is closed": Fault(
        close_17001,
        open_17001,
        user='"code":"queue_timeout"',
        owner="proxy port: gpu.example.org, port 17001: no answer",
        operator=("fabric-server nodes list", "allow TCP 17001"),
        log=(RUN, '"problem":"no_tunnels"'),
    ),
    "the node's clock is wrong": Fault(
        set_the_clock_wrong,
        set_the_clock_right,
        user="200 OK",  # a clock that differs does no harm before a certificate ends
        owner="clock is 2 h ahead of the server's",
        operator=("fabric-server nodes list", "clock is 2 h ahead"),
        log=(RUN, '"problem":"clock_differs"'),
    ),
    "--data is mistyped": Fault(
        nothing,
        nothing,
        user="200 OK",
        owner="findings are good",
        operator=(
            "fabric-server keys create bob --data ~/.fabric/sever",
            "there is no server's store here",
        ),
    ),
}


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evening]:
    with town_in(tmp_path_factory.mktemp("town")) as (town, lab):
        to_the_first_token(town)
        yield Evening(town, lab)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_each_person_sees(evening: Evening, fault: Fault) -> None:
    town = evening.town
    fault.breaks(evening)
    try:
        town.settle()
        until(town.user, CHAT, fault.user)
        if fault.owner:
            until(town.owner, "fabric-client doctor", fault.owner)
        if fault.operator[0]:
            until(town.operator, *fault.operator)
        if fault.log[0]:
            person = town.operator if fault.log[0] == UP else town.owner
            program = person.programs[fault.log[0]]
            if not any(fault.log[1] in line for line in program.lines):
                program.line_with(fault.log[1], timeout=90)  # some are written once a minute
    finally:
        fault.mends(evening)
        town.settle()
    until(town.user, CHAT, "200 OK")


def until(person: Person, command: str, text: str) -> None:
    """Run the command until it says the text, for a minute at most."""
    deadline = time.monotonic() + 60
    while text not in (said := person.run(command, code=None)):
        assert time.monotonic() < deadline, f"{text!r} is not in:\n{said}"
        time.sleep(0.5)  # seen from outside: there is no event for it


def test_the_documents_example_of_the_doctor_is_what_it_says(evening: Evening) -> None:
    (example,) = blocks("docs/troubleshooting.md", "When something does not work")
    shown = example.text.replace("203.0.113.7", evening.lab.server_address)
    close_17001(evening)
    try:
        said = evening.town.owner.run("fabric-client doctor", code=1)
    finally:
        open_17001(evening)
    lines = [line for line in shown.splitlines() if "engine:" not in line]
    for line in lines[:-1]:
        words = " ".join(line.split())
        assert words in " ".join(said.split()), f"{words!r} is not in:\n{said}"
    assert re.search(r"^1 failed, 0 warnings, \d+ good\.$", said, re.MULTILINE), said


def test_a_mistyped_directory_is_not_made(evening: Evening) -> None:
    operator = evening.town.operator
    operator.run("fabric-server keys create bob --data ~/.fabric/sever", code=2)
    assert not Path(operator.home, ".fabric/sever").exists()
