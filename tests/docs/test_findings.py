"""The table of findings in the documents has every code that a program can tell, and no other."""

from __future__ import annotations

import re

from tests.packaging.checkout import ROOT

SOURCES = (
    "runtime/findings.py",
    "runtime/doctor.py",
    "runtime/http_proxy.py",
    "runtime/port_probe.py",
    "protocol/findings.py",
    "fabric_client/findings.py",
    "fabric_client/cli/checks.py",
    "fabric_server/acme/findings.py",
    "fabric_server/cli/checks.py",
    "fabric_server/cli/port_checks.py",
    "fabric_server/cli/retention_checks.py",
)
CODE = re.compile(r'"([a-z]+(?:_[a-z]+)+)"')
NO_CODES = {"proxy_protocol", "https_proxy", "no_proxy"}


def test_every_code_is_documented() -> None:
    told = {code for path in SOURCES for code in CODE.findall((ROOT / path).read_text("utf-8"))}
    told |= {"paused"} | {f"{part}_away" for part in ("store", "cache", "bus")}
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").partition("## Findings")[2]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert documented == told - NO_CODES
