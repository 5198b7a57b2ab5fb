"""Findings: what a check of a program or its machine found, and what to do about it.

A finding is made in one place and shown in many: by ``doctor``, by ``status`` and ``nodes list``,
in the log, and by its code in metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

from msgspec import Struct

DAY = 86_400.0
SOON_SECONDS = 3 * DAY
"""A certificate that ends in less was not renewed when it was due."""
LOW_DISK, FULL_DISK = 2**30, 64 * 2**20
"""Free bytes below which a disk is nearly full, and below which it counts as full."""
FEW_FILES = 1024

Level = Literal["ok", "warn", "FAIL"]


class Finding(Struct, frozen=True, omit_defaults=True):
    """One finding; its texts may hold what others wrote."""

    check: str
    """What was looked at, such as ``proxy port``."""
    level: Level
    what: str
    """What was found, a sentence without its full stop."""
    code: str = ""
    """Name of the problem, of a small fixed set; empty when all is well."""
    remedy: str = ""
    """What to do, in the same form."""

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


def ok(check: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, "ok", what)


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that are not ``ok``, failures first."""
    found = [one for one in findings if one.level != "ok"]
    return sorted(found, key=lambda one: one.level != "FAIL")


# ── what every program has ────────────────────────────────────────────────────────────────────


def certificate_dates(
    check: str, begins: float, ends: float, now: float, remedy: str, *, backdated: float = 0.0
) -> Finding:
    """Judge a certificate by its dates; ``remedy`` says how to get another one.

    It is valid ``backdated`` seconds before ``begins``.
    """
    if now >= ends:
        return Finding(check, "FAIL", "the certificate has expired", "certificate_expired", remedy)
    if now < begins - backdated:
        return Finding(
            check,
            "warn",
            "the certificate is not valid yet",
            "certificate_not_begun",
            "check this machine's clock",
        )
    days = (ends - now) / DAY
    if ends - now < min(SOON_SECONDS, (ends - begins) / 4):
        what = f"the certificate expires in {days:.1f} days and was not renewed"
        return Finding(check, "warn", what, "certificate_ends", remedy)
    return ok(check, f"the certificate is good for {days:.0f} more days")


def disk(path: str, free: int) -> Finding:
    """Judge the free bytes of the disk that holds a program's data."""
    mib = f"{free / 2**20:,.0f} MiB are free in {path}"
    if free < FULL_DISK:
        return Finding("disk", "FAIL", mib, "disk_full", "make room, or set data to another disk")
    if free < LOW_DISK:
        return Finding("disk", "warn", mib, "disk_low", "make room soon")
    return ok("disk", mib)


def descriptors(limit: int, needed: int = FEW_FILES) -> Finding:
    """Judge a limit of open files."""
    what = f"{limit:,} open files are allowed"
    if limit >= needed:
        return ok("descriptors", what)
    remedy = "raise it: ulimit -n, or LimitNOFILE= of the systemd unit"
    return Finding("descriptors", "warn", what, "few_descriptors", remedy)


# ── in the log ────────────────────────────────────────────────────────────────────────────────


class FindingLog:
    """Logs a problem once when it is found, and once when it is gone."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._known: dict[Hashable, dict[str, Finding]] = {}

    def update(
        self, findings: Iterable[Finding], of: Hashable = "", fields: Mapping[str, object] = {}
    ) -> None:
        """Take all findings ``of`` one thing as they are now; ``fields`` name it in the log."""
        now = {one.code: one for one in findings if one.level != "ok"}
        before = self._known.get(of, {})
        for code in sorted(now.keys() - before.keys()):
            one = now[code]
            self._log.log(
                logging.ERROR if one.level == "FAIL" else logging.WARNING,
                one.what,
                extra={"problem": code, "remedy": one.remedy, **fields},
            )
        for code in sorted(before.keys() - now.keys()):
            self._log.info("a problem is over", extra={"problem": code, **fields})
        if now:
            self._known[of] = now
        else:
            self._known.pop(of, None)

    def forget(self, of: Hashable) -> None:
        """Forget a thing that is gone: nothing is known of its problems any more."""
        self._known.pop(of, None)
