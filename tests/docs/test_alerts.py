"""The table of alerts in docs/operations.md has those of docker/monitoring/alerts.yml."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.packaging.checkout import ROOT

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docker/monitoring/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
WATCH = (ROOT / "docs/operations.md").read_text("utf-8").partition("\n## What to watch\n")[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in WATCH.partition("\n## ")[0].splitlines()
    if line.startswith("| `Fabric")
]
UNITS = {"min": 60, "h": 3600, "days": 86400}


def test_the_document_has_the_alerts_of_the_file_in_its_order() -> None:
    assert [row[0].strip("`") for row in ROWS] == [rule["alert"] for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_says_when_what_and_what_to_do(rule: dict[str, Any]) -> None:
    row = next(row for row in ROWS if row[0] == f"`{rule['alert']}`")
    assert len(row) == 4
    assert all(row)
    assert seconds_of_text(row[1]) == seconds(rule)
    for number in re.findall(r"> (\d{2,})\b(?! \*)", rule["expr"]):
        assert f"{int(number):,}" in row[2], f"the threshold {number} is not in {row[2]!r}"


def seconds(rule: dict[str, Any]) -> float:
    """Return how long the condition must hold: the rule's ``for`` and the spans in its query."""
    held = {"m": 60, "h": 3600}
    given = rule.get("for", "0m")
    total = float(given[:-1]) * held[given[-1]]
    for days in re.findall(r"> (\d+) \* 86400", rule["expr"]):
        total += int(days) * 86400
    for minutes in re.findall(r"min_over_time\(\w+\[(\d+)m\]", rule["expr"]):
        total += int(minutes) * 60
    return total


def seconds_of_text(text: str) -> float:
    """Return the seconds of ``5 min`` or ``3 days + 1 h``; ``at once`` is none."""
    if text == "at once":
        return 0
    parts = (part.split() for part in text.split(" + "))
    return sum(float(number) * UNITS[unit] for number, unit in parts)
