"""SECURITY.md: each attack has a defence and tests that exist, and the tests are run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.packaging.checkout import ROOT

PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
HEADER = "| attack | defence | tests |"
TEST = re.compile(r"`(tests/[\w/]+\.py)`")


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the cells of each attack."""
    for table in PAGE.split(HEADER)[1:]:
        for line in table.splitlines()[2:]:
            if not line.startswith("|"):
                break
            attack, defence, tests = (cell.strip() for cell in line.strip("|").split("|"))
            yield attack, defence, tests


ROWS = list(rows())


def test_there_are_attacks_of_everybody() -> None:
    assert PAGE.count(HEADER) == 5
    assert len(ROWS) > 40
    assert len({attack for attack, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("attack", "defence", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_an_attack_has_tests_that_exist_and_are_run(attack: str, defence: str, tests: str) -> None:
    assert attack and defence
    named = TEST.findall(tests)
    assert named, f"'{attack}' has no test"
    assert tests == ", ".join(f"`{name}`" for name in named), "only files of tests stand there"
    assert len(set(named)) == len(named)
    for name in named:
        path = ROOT / name
        assert path.exists(), f"{name} does not exist"
        assert path.name.startswith("test_"), f"pytest does not collect {name}"
        functions = [
            node.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert any(function.startswith("test_") for function in functions), f"{name} tests nothing"


def test_the_page_is_found_from_where_people_look() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/out-of-scope.md"):
        assert "SECURITY.md" in (ROOT / page).read_text("utf-8"), page
