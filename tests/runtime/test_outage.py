"""An outage of a back end in the log: one line when it begins, one when it ends."""

from __future__ import annotations

import logging

import pytest

from fabric_server.jobs.outage import OutageLog
from runtime.errors import StoreError
from runtime.outage import MAX_HELD, Outage

part = logging.getLogger("fabric.part")
DEBUG, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(DEBUG, "fabric")


def lines(caplog: pytest.LogCaptureFixture, level: int = INFO) -> list[tuple[int, str]]:
    return [(one.levelno, one.message) for one in caplog.records if one.levelno >= level]


def test_an_outage_that_many_parts_see_is_one_line_and_its_end_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    outage = Outage("the store", meanwhile="jobs wait", remedy="start it", clock=lambda: now[0])
    for _ in range(3):
        outage.failed("changes", "it is gone")
        outage.failed("records", "the disk is full")
        outage.note(part, "jobs wait for the store", reason="it is gone")
    assert outage.problem == "it is gone"
    now[0] = 107.25
    outage.worked("changes")
    assert outage.problem == "the disk is full"
    for name in ("records", "changes", "records"):
        outage.worked(name)
    assert outage.problem is None
    assert lines(caplog) == [(ERROR, "the store is away"), (INFO, "the store is back")]
    shown = caplog.records[0].__dict__
    told = [shown[name] for name in ("reason", "meanwhile", "remedy")]
    assert told == ["it is gone", "jobs wait", "start it"]
    assert caplog.records[-1].__dict__["seconds"] == 7.2
    about = [one for one in caplog.records if one.levelno == DEBUG]
    assert [one.message for one in about] == [
        "the store is away",
        *3 * ["jobs wait for the store"],
        "the store is back",
    ]
    assert about[0].__dict__["part"] == "records"


def test_a_part_that_fails_first_waits_for_the_next_look(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store")
    outage.worked("changes")
    outage.note(part, "a node was not stored", node="n")
    assert lines(caplog, DEBUG) == []
    outage.failed("changes", "it is gone")
    assert lines(caplog, DEBUG) == [(ERROR, "the store is away"), (DEBUG, "a node was not stored")]
    assert caplog.records[1].__dict__["node"] == "n"


def test_what_no_outage_explains_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store")
    outage.note(part, "before the first look")
    assert lines(caplog) == [(WARNING, "before the first look")]
    outage.worked("changes")
    outage.note(part, "the table is locked")
    outage.worked("records")
    outage.worked("changes")
    assert lines(caplog)[1:] == [(WARNING, "the table is locked")]


def test_few_lines_are_held_and_none_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store")
    outage.worked("changes")
    for number in range(MAX_HELD + 2):
        outage.note(part, f"no {number}")
    assert lines(caplog) == [(WARNING, f"no {MAX_HELD}"), (WARNING, f"no {MAX_HELD + 1}")]
    outage.close()
    assert sorted(lines(caplog)) == sorted((WARNING, f"no {n}") for n in range(MAX_HELD + 2))
    outage.note(part, "the last")
    assert lines(caplog)[-1] == (WARNING, "the last")


def test_a_state_of_its_own_has_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store", meanwhile="nothing goes on", remedy="start it")
    outage.failed("writing", "it is a replica", state="read-only", meanwhile="keys can be read")
    outage.failed("writing", "it is a replica", state="read-only", meanwhile="keys can be read")
    outage.worked("writing")
    assert lines(caplog) == [(ERROR, "the store is read-only"), (INFO, "the store is back")]
    shown = caplog.records[0].__dict__
    assert (shown["meanwhile"], shown["remedy"]) == ("keys can be read", "start it")


def test_a_part_that_leaves_holds_no_outage_open(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store")
    outage.failed("orphans", "it is slow")
    outage.left("orphans")
    assert (outage.problem, outage.over) == (None, 1)
    outage.failed("records", "it is gone")
    outage.failed("orphans", "it is gone")
    outage.left("orphans")
    outage.left("orphans")
    assert (outage.problem, outage.over) == ("it is gone", 1)


def test_jobs_that_fail_on_after_an_outage_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("the store")
    jobs = OutageLog(part, "jobs wait for the store", outage)
    outage.failed("changes", "it is gone")
    for _ in range(3):
        jobs.failed(StoreError("permission denied"))
    assert lines(caplog, WARNING) == [(ERROR, "the store is away")]
    outage.worked("changes")
    for _ in range(5):
        jobs.failed(StoreError("permission denied"))
        outage.worked("changes")
    assert lines(caplog)[1:] == [
        (INFO, "the store is back"),
        (WARNING, "jobs wait for the store"),
    ]
