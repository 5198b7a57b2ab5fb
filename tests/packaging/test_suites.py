"""The table of the public suites, ``make suites``, without running them."""

from __future__ import annotations

import pytest

from tests.suites.__main__ import main, table
from tests.suites.node_client import version as node_version
from tests.suites.plugins.suite_cases import name_of
from tests.suites.python_clients import PACKAGES, version
from tests.suites.responses_cases import CASES
from tests.suites.table import Others, Outcome, Suite, judge, suites

GOOD, BAD = Outcome("passed"), Outcome("failed", "broken")
SUITE = Suite(
    "some", "About it.", ["chat::*"], [Others(["chat::*stored*", "admin/*"], "Not here.", True)]
)


def test_each_suite_says_what_must_pass_and_why_the_rest_need_not() -> None:
    for suite in suites().values():
        assert suite.must_pass and suite.about.endswith(".")
        rows = [*suite.must_pass, *(case for group in suite.others for case in group.cases)]
        assert len(rows) == len(set(rows)), f"{suite.name} has a row twice"
        for group in suite.others:
            assert group.cases and group.reason.endswith("."), f"{suite.name}: {group}"


def test_each_suite_has_a_locked_version() -> None:
    assert {*PACKAGES, "openai-node", "open-responses"} == set(suites())
    for text in (*map(version, PACKAGES), node_version()):
        assert all(part.isdigit() for part in text.split("."))


def test_the_table_fits_the_questions_of_open_responses() -> None:
    verdict = judge(suites()["open-responses"], "1", dict.fromkeys(CASES, GOOD))
    assert verdict.good and verdict.cases == len(CASES)


def test_a_case_that_must_pass_decides() -> None:
    passed = {"chat::a": GOOD, "chat::stored": BAD, "admin/x::b": BAD}
    verdict = judge(SUITE, "1", passed)
    assert verdict.good
    assert (verdict.cases, verdict.must_pass, verdict.passed) == (3, 1, 1)
    assert verdict.reasons == {"Not here.": 2}
    failed = judge(SUITE, "1", {**passed, "chat::a": BAD})
    assert not failed.good
    assert failed.failures == {"chat::a": "failed: broken"}
    assert "FAILED chat::a: failed: broken" in table([failed])


def test_skipping_is_not_passing() -> None:
    cases = {"chat::a": Outcome("skipped"), "chat::stored": BAD, "admin/x::b": BAD}
    assert not judge(SUITE, "1", cases).good


def test_a_case_that_no_row_fits_and_a_row_that_fits_no_case_are_failures() -> None:
    cases = {"chat::a": GOOD, "chat::stored": BAD, "admin/x::b": BAD}
    unknown = judge(SUITE, "1", {**cases, "new::a": GOOD})
    assert list(unknown.failures) == ["new::a"]
    del cases["admin/x::b"]
    gone = judge(SUITE, "1", cases)
    assert (gone.good, gone.stale) == (False, ["admin/*"])
    assert not judge(SUITE, "1", {}).good


def test_what_passes_though_it_need_not_is_told() -> None:
    cases = {"chat::a": GOOD, "chat::stored": GOOD, "admin/x::b": BAD}
    verdict = judge(SUITE, "1", cases)
    assert verdict.good and verdict.now_pass == ["chat::*stored*"]


def test_names_of_cases_have_no_brackets() -> None:
    assert name_of("tests/api_resources/chat/test_a.py::T::test_b[loose]") == (
        "chat/test_a.py::T::test_b:loose"
    )


def test_an_unknown_suite_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["openai-perl"])
    assert "there is no suite 'openai-perl'; there are openai-python, " in capsys.readouterr().err
