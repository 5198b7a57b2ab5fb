"""A pytest plugin that prints the matrix of clients at the end, also when tests run in several
processes: each test's cell travels with its report, and the process that prints adds them up.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.clients.matrix import Matrix, Row

CELL = "cell"
ANSWER = "answer"


class MatrixReport:
    """Collects the cells of all test reports that reach this process."""

    def __init__(self) -> None:
        self.matrix = Matrix()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cells = [value for name, value in report.user_properties if name == CELL]
        # The call phase counts, and any other phase that failed.
        if not cells or (report.when != "call" and report.passed):
            return
        client, endpoint, streamed, kind = cells[0]
        notes = [str(value) for name, value in report.user_properties if name == ANSWER]
        self.matrix.add(Row(client, endpoint, streamed), kind, report.passed, notes)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.matrix.cells:
            terminalreporter.section("what clients got, by kind of node")
            for line in self.matrix.lines():
                terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(MatrixReport())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Function) -> Iterator[None]:
    mark = item.get_closest_marker("cell")
    if mark is not None:
        endpoint, streamed = mark.args
        cell = (item.module.CLIENT, endpoint, streamed, item.callspec.params["kind"])
        item.user_properties.append((CELL, cell))
    return (yield)
