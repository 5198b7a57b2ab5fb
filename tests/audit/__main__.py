"""``python -m tests.audit [LOCK …]``: look the locked versions up in OSV's data or an index's.

Exit codes: 0 nothing is known, or nobody could be asked, which is said; 1 a version has a known
vulnerability.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
OSV = "https://api.osv.dev/v1/querybatch"
SECONDS = 20.0

ACCEPTED: dict[str, str] = {}
"""Ids of vulnerabilities that don't concern us, and why; each is printed."""

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)(?:\[[^]]*])?==([^\s;\\]+)", re.MULTILINE)


class Pin(NamedTuple):
    name: str
    version: str


class Unreachable(Exception):
    """The data can't be had; ``str()`` says from where and why."""


def pins(texts: Iterable[str]) -> list[Pin]:
    """Return the packages that lock files pin, each once."""
    return sorted({Pin(name.lower(), version) for text in texts for name, version in
                   _PIN.findall(text)})  # fmt: skip


def ask_osv(url: str, wanted: Sequence[Pin]) -> dict[Pin, list[str]]:
    """Return the ids of the vulnerabilities of each package, from OSV in one request."""
    queries = [
        {"package": {"name": pin.name, "ecosystem": "PyPI"}, "version": pin.version}
        for pin in wanted
    ]
    results = _json(url, json.dumps({"queries": queries}).encode()).get("results", [])
    if len(results) != len(wanted):
        raise Unreachable(f"{url} answered about {len(results)} packages of {len(wanted)}")
    return {
        pin: [vulnerability["id"] for vulnerability in (result or {}).get("vulns", [])]
        for pin, result in zip(wanted, results, strict=True)
    }


def ask_index(url: str, wanted: Sequence[Pin]) -> dict[Pin, list[str]]:
    """Return the same from the index's JSON, in a request for each package."""
    found = {}
    for pin in wanted:
        said = _json(f"{url}/{pin.name}/{pin.version}/json")
        if "vulnerabilities" not in said:
            raise Unreachable(f"{url} has no vulnerabilities in its JSON")
        found[pin] = [one["id"] for one in said["vulnerabilities"] if not one.get("withdrawn")]
    return found


def _json(url: str, body: bytes | None = None) -> dict[str, Any]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            value = json.load(answer)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise Unreachable(f"{url}: {reason}") from None
    if not isinstance(value, dict):
        raise Unreachable(f"{url}: no JSON object")
    return value


def _index() -> str:
    """Return the JSON API beside the index that pip is set to use; empty if it is set to none."""
    url = os.environ.get("PIP_INDEX_URL", "").rstrip("/")
    return f"{url.removesuffix('/simple')}/pypi" if url else ""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit", description=__doc__)
    parser.add_argument("locks", nargs="*", type=Path, help="lock files (default: all of them)")
    parser.add_argument("--osv", default=OSV, help="address of OSV's batch query")
    parser.add_argument(
        "--index", default=_index(), help="JSON API of a package index (default: that of pip's)"
    )
    options = parser.parse_args(words)
    locks = options.locks or sorted((*ROOT.glob("*.lock"), *ROOT.glob("tests/lab/**/*.lock")))
    wanted = pins(lock.read_text("utf-8") for lock in locks)
    reasons = []
    for source, ask, url in (
        ("OSV", ask_osv, options.osv),
        ("the index", ask_index, options.index),
    ):
        if not url:
            reasons.append(f"{source}: no address; set --index, or PIP_INDEX_URL as for pip")
            continue
        try:
            found = ask(url, wanted)
        except Unreachable as reason:
            reasons.append(str(reason))
            continue
        return _report(source, found)
    print(f"NOT AUDITED: {len(wanted)} packages were looked up nowhere, since no data can be had.")
    for reason in reasons:
        print(f"  {reason}")
    print("Run 'make audit' where the internet can be reached, before each release.")
    return 0


def _report(source: str, found: dict[Pin, list[str]]) -> int:
    bad = 0
    for pin, ids in found.items():
        for id in ids:
            if id in ACCEPTED:
                print(f"{pin.name} {pin.version}: {id} is accepted: {ACCEPTED[id]}")
                continue
            bad += 1
            print(f"{pin.name} {pin.version}: {id}, see https://osv.dev/vulnerability/{id}")
    if bad:
        print(f"{bad} known vulnerabilities (from {source}): 'make lock ARGS=--upgrade' takes "
              "newer versions.")  # fmt: skip
        return 1
    print(f"{len(found)} packages have no known vulnerability (from {source}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
