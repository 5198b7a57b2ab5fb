"""Runs ``nft`` and ``xdp-filter``, and feeds the kernel's blocklist from a running server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from fabric_server.net.guard_rules import GuardStatus, block_text, blocked_as, parse_status

log = logging.getLogger("fabric.guard")

SECONDS = 5.0
"""Timeout for one program."""
FLUSH_SECONDS = 1.0
RETRY_SECONDS = 60.0
"""The kernel is not asked again for so long after it has refused."""
MAX_WAITING = 1024
"""Addresses that wait to be blocked; further ones are dropped, and counted."""
MAX_REPORTS = 200
"""Reports of one address within ``WINDOW_SECONDS`` for which it is blocked."""
WINDOW_SECONDS = 60.0
BLOCK_SECONDS = 600.0
MAX_REPORTED = 4096
"""Addresses of which reports are counted at a time."""
MAX_XDP_CHANGES = 32
"""Programs run for XDP at a time: ``xdp-filter`` takes one address each."""
XDP_SECONDS = 5.0
LIST = ("nft", "-j", "list", "table", "inet", "fabric_guard")
_FILTERED = re.compile(r"^ +([0-9a-f.:]+) +\S*src", re.MULTILINE)


class GuardProblem(Exception):
    """The kernel's rules could not be read or changed; ``str()`` says why."""


Run = Callable[[Sequence[str], str], Coroutine[Any, Any, str]]
"""Runs a program with text as its input; returns its output.  Raises ``GuardProblem``."""


async def run_program(command: Sequence[str], input: str = "") -> str:
    """Run a program and return what it prints.  Raises ``GuardProblem``."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise GuardProblem(f"'{command[0]}' is not installed") from None
    except OSError as error:
        raise GuardProblem(f"'{command[0]}' can't be run: {error.strerror}") from None
    try:
        async with asyncio.timeout(SECONDS):
            output, problem = await process.communicate(input.encode())
    except TimeoutError:
        raise GuardProblem(f"'{command[0]}' did not end within {SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        first = problem.decode(errors="replace").strip().partition("\n")[0]
        raise GuardProblem(f"'{command[0]}' failed: {first or process.returncode}")
    return output.decode(errors="replace")


async def read_status(run: Run = run_program) -> GuardStatus | None:
    """Return the state of the fabric's table; None if there is none.  Raises ``GuardProblem``."""
    try:
        return parse_status(json.loads(await run(LIST, "")))
    except GuardProblem as problem:
        if "No such file" in str(problem):
            return None
        raise
    except ValueError:
        raise GuardProblem("'nft' printed no JSON") from None


async def match_xdp(run: Run, blocked: Iterable[str]) -> None:
    """Make the addresses that xdp-filter drops those that are blocked, as far as it can.

    xdp-filter knows no timeouts and no networks, so IPv6 stays with nftables.
    """
    wanted = {address for address in blocked if ":" not in address}
    there = set(_FILTERED.findall(await run(("xdp-filter", "status"), "")))
    changes = [
        *((address, False) for address in sorted(there - wanted) if ":" not in address),
        *((address, True) for address in sorted(wanted - there)),
    ]
    for address, added in changes[:MAX_XDP_CHANGES]:
        await run(("xdp-filter", "ip", *(() if added else ("-r",)), address, "-m", "src"), "")


class KernelBlocklist:
    """Blocks addresses in the kernel, if ``fabric-server guard install`` was run.

    Otherwise, or without the right to do so, it does nothing; the log says so once.
    """

    def __init__(self, run: Run = run_program, clock: Callable[[], float] = time.monotonic) -> None:
        self.results: Counter[str] = Counter()
        """Addresses ``blocked``, or ``failed``."""
        self._run_program = run
        self._clock = clock
        self._reports: Counter[str] = Counter()
        self._window_ends = 0.0
        self._waiting: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._problem = ""
        """The reason that was logged last."""

    def report(self, address: str) -> None:
        """Count a connection or a wrong key that was refused because its address has too many.

        ``MAX_REPORTS`` within a minute block it for ``BLOCK_SECONDS``.  An address from which users
        with valid keys came lately must not be reported: an office, say, behind one address.
        """
        now = self._clock()
        reports = self._reports
        if now >= self._window_ends:
            reports.clear()
            self._window_ends = now + WINDOW_SECONDS
        if address not in reports and len(reports) >= MAX_REPORTED:
            return
        reports[address] += 1
        if reports[address] == MAX_REPORTS:
            self.block(address, BLOCK_SECONDS)

    def block(self, address: str, seconds: float) -> None:
        """Block new connections from an address; of IPv6 from its /64.  Never waits or raises."""
        found = blocked_as(address)
        if found is None:
            return
        if found not in self._waiting and len(self._waiting) >= MAX_WAITING:
            self.results["failed"] += 1
            return
        self._waiting[found] = max(seconds, self._waiting.get(found, 0.0))
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled.  A batch of addresses is one transaction, at most one a second."""
        interfaces: tuple[str, ...] = ()
        while True:
            try:
                # With XDP, what has expired must be taken out there.
                async with asyncio.timeout(XDP_SECONDS if interfaces else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            batch, self._waiting = self._waiting, {}
            try:
                if batch:
                    await self._run_program(("nft", "-f", "-"), block_text(batch))
                status = await read_status(self._run_program)
                interfaces = () if status is None else status.interfaces
                if status is not None and interfaces:
                    await match_xdp(self._run_program, status.blocked)
            except GuardProblem as problem:
                interfaces = ()
                self._on_problem(str(problem), batch)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._on_done(batch)
            await asyncio.sleep(FLUSH_SECONDS)

    def _on_done(self, batch: Mapping[str, float]) -> None:
        self.results["blocked"] += len(batch)
        self._problem = ""
        if batch:
            log.info("addresses blocked in the kernel", extra={"count": len(batch)})

    def _on_problem(self, problem: str, batch: Mapping[str, float]) -> None:
        self.results["failed"] += len(batch)
        if problem != self._problem:
            self._problem = problem
            hint = "run 'fabric-server guard install' as root; the server needs CAP_NET_ADMIN"
            log.info("nothing is blocked in the kernel", extra={"reason": problem, "hint": hint})
