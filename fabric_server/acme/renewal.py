"""Keeps the certificate for users valid: orders it, and renews it long before its end.

A failure ends nothing: the certificate that is there stays in use, or the fabric's own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

from msgspec.structs import replace

from fabric_server.acme.answers import Answer, Answers, Kind
from fabric_server.acme.failure import AcmeFailure, pause_after
from fabric_server.acme.findings import judge
from fabric_server.acme.http_port import HttpPort, PortProblem
from fabric_server.acme.state import AcmeFiles, State, why_due
from fabric_server.pki.certificates import CertificateProblem
from fabric_server.storage.acme import ChallengeRow, ChallengeStore
from runtime.background import BackgroundTasks
from runtime.errors import BackendError
from runtime.extras import needed_by
from runtime.findings import Finding

log = logging.getLogger("fabric.acme")

T = TypeVar("T")

CHECK_SECONDS = 60.0
"""How often it is looked whether a certificate is due."""
SYNC_SECONDS = 2.0
"""How often the store is asked what other servers have to be answered for."""
SPREAD_SECONDS = 3 * SYNC_SECONDS
"""How long the CA is not asked to look, so that other servers of the store know the answers."""
LEASE_SECONDS = 420.0
DECISION_SECONDS = 120.0
"""How long the CA may take for its checks, and then again for the certificate."""
NO_ORDERS = {"issued": 0, "failed": 0}
SOONEST_RETRY = 60.0
"""Seconds between a failure and the next try for which an operator asks."""


@dataclass(frozen=True, kw_only=True)
class AcmeOptions:
    """The order: of which names, where, and how the CA's challenges are answered."""

    data: Path
    names: tuple[str, ...]
    url: str
    kind: Kind
    email: str = ""
    ca: Path | None = None
    http_hosts: tuple[str, ...] = ()
    http_port: int = 80
    spread_seconds: float = 0.0
    """How long to wait until other servers know the answers; 0 where there can be none."""
    orders: bool = True
    """This process orders, and answers at the HTTP port; else another one with the same data."""
    check_seconds: float = CHECK_SECONDS
    order_seconds: float = LEASE_SECONDS
    """Time for a whole order; after it another server may order."""
    clock: Callable[[], float] = field(default=time.time, compare=False)


class Order(Protocol):
    """An order at the CA, as ``session.Session`` is one: every method asks it, and blocks."""

    def begin(self, names: Sequence[str]) -> list[Answer]: ...
    def ask(self) -> None: ...
    def decided(self) -> bool: ...
    def finish(self) -> None: ...
    def issued(self) -> str | None: ...
    def close(self) -> None: ...


class AcmeRenewal:
    """The supervised task ``acme``, and ``acme_answers``, which gives the answers of all servers.

    ``problem`` is what is wrong now; ``orders`` counts certificates that were issued, and failures.
    """

    def __init__(
        self,
        options: AcmeOptions,
        store: ChallengeStore,
        on_issued: Callable[[], object],
        rng: Random,
    ) -> None:
        """``on_issued`` is called when the file has a new certificate.  Raises ``OSError``."""
        self.options = options
        self.files = AcmeFiles(options.data)
        self.files.make()
        self.answers = Answers()
        self.http = HttpPort(options.http_hosts, options.http_port, self.answers.authorization)
        self.problem: Finding | None = None
        self.orders: Counter[str] = Counter(NO_ORDERS)
        self._store = store
        self._on_issued = on_issued
        self._rng = rng
        self._owner = f"server_{secrets.token_hex(8)}"
        self._hurried = False
        self._wake = asyncio.Event()
        self._syncing = asyncio.Lock()
        self._threads = _new_thread()

    def start_tasks(self, tasks: BackgroundTasks) -> None:
        """Start both tasks, which ``close`` ends; where another process orders, only the second."""
        if self.options.orders:
            tasks.start("acme", self.run)
        tasks.start("acme_answers", self.give_answers)

    async def close(self, tasks: BackgroundTasks) -> None:
        """End both tasks, and give the leases back."""
        await tasks.stop("acme", "acme_answers")
        await self._release()  # again: the end of the task may have cut it short
        self.http.stop()
        self._threads.shutdown(wait=False)

    def hurry(self) -> None:
        """Try soon, although the last try has failed: the operator says that it will work now."""
        self._hurried = True
        self._wake.set()

    # ── the answers of all servers ────────────────────────────────────────────────────────────

    async def give_answers(self) -> None:
        """Take the answers from the store, until cancelled."""
        said = ""
        while True:
            try:
                await self._sync()
            except PortProblem as problem:
                if str(problem) != said:
                    said = str(problem)
                    log.warning("a challenge can't be answered here", extra={"reason": said})
            except BackendError as error:
                log.debug("no challenges known: the store is away", extra={"reason": str(error)})
            await asyncio.sleep(SYNC_SECONDS)

    async def _sync(self) -> None:
        """Answer what the store has now.  Raises ``PortProblem`` or ``BackendError``."""
        names = set(self.options.names)
        async with self._syncing:  # what was read first must not be put in place last
            self.answers.replace(
                [
                    Answer(row.name, row.kind, row.token, row.key_authorization)
                    for row in await self._store.answered()
                    if row.name in names
                ]
            )
            if self.answers.to_http and self.options.orders:
                await self.http.start()
            else:
                self.http.stop()

    # ── the certificate of this server ────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Order a certificate whenever one is due, until cancelled."""
        while True:
            seconds = await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()

    async def check(self) -> float:
        """Order a certificate if one is due and the last failure is long enough ago.

        Return after how many seconds to look again.
        """
        self._wake.clear()
        every = self.options.check_seconds
        state, because = self._look()
        if because is None:
            self._hurried = False
            return every
        wait = _seconds_to_next_try(state, self.options.clock(), self._hurried)
        if wait > 0:
            return min(wait, every)
        self._hurried = False
        if await self._claim(state):
            try:
                state, because = self._look()  # another server of this directory was first, maybe
                if because is not None:
                    await self._attempt(because, state)
            finally:
                await self._release()
            self._look()
        return every

    def _look(self) -> tuple[State, str | None]:
        """Return what is known of the last tries, and why a certificate is due, if one is."""
        now, state, certificate = self.options.clock(), self.files.state(), self.files.issued()
        because = why_due(certificate, state, self.options.url, self.options.names, now)
        if because is None and state.failures:
            state = State(ca=state.ca)
            self.files.save(state)
        self.problem = judge(state, certificate, now)
        return state, because

    async def _claim(self, state: State) -> bool:
        """Return whether this server may order now, and no other."""
        try:
            names = sorted(self.options.names)
            claimed = await self._store.claim(names, self._owner, seconds=LEASE_SECONDS)
        except BackendError as error:
            self._failed(AcmeFailure("store", str(error), "see the findings on the store"), state)
            return False
        if not claimed:
            log.info("another server orders a certificate for these names", extra={"names": names})
        return claimed

    async def _release(self) -> None:
        try:
            await self._store.release(self._owner)
            await self._sync()
        except (BackendError, PortProblem) as error:
            log.debug("the leases end by themselves", extra={"reason": str(error)})

    async def _attempt(self, because: str, state: State) -> None:
        log.info(
            "a certificate is ordered",
            extra={"names": self.options.names, "ca": self.options.url, "because": because},
        )
        # Before the CA is asked: whatever ends this program now has been a try.
        self._note(AcmeFailure("interrupted", "the last try was cut short", ""), state)
        try:
            async with asyncio.timeout(self.options.order_seconds):
                pem = await self._order()
            self.files.save_certificate(pem)
        except AcmeFailure as failure:
            self._failed(failure, state)
        except TimeoutError:
            self._leave_thread()
            reason = f"the CA was not done after {self.options.order_seconds:g} s"
            remedy = "check the network and acme_directory; see the CA's status page"
            self._failed(AcmeFailure("unreachable", reason, remedy), state)
        except (BackendError, PortProblem, CertificateProblem) as error:
            code = "port" if isinstance(error, PortProblem) else "store"
            remedy = "use tls-alpn-01, or another acme_http_port that port 80 is forwarded to"
            if code == "store":
                remedy = "see the other findings"
            self._failed(AcmeFailure(code, str(error), remedy), state)
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        """Note that the file has a new certificate."""
        state = State(ca=self.options.url)
        self.files.save(state)
        self.orders["issued"] += 1
        log.info("a certificate was issued", extra={"names": self.options.names})
        self._on_issued()
        if why_due(self.files.issued(), state, state.ca, self.options.names, self.options.clock()):
            reason = "the certificate that was issued is due again at once"
            self._failed(AcmeFailure("refused", reason, "check this machine's clock"), state)

    async def _order(self) -> str:
        """Return the key and chain of a new certificate."""
        session = await self._in_thread(self._open_session)
        try:
            return await self._carry_out(session)
        finally:
            self._threads.submit(session.close)

    def _open_session(self) -> Order:
        with needed_by("acme"):
            from fabric_server.acme.session import Options, Session

        of = self.options
        return Session(Options(of.url, of.kind, of.email, of.ca), self.files.account_key(of.url))

    async def _carry_out(self, session: Order) -> str:
        answers = await self._in_thread(lambda: session.begin(self.options.names))
        if answers:
            await self._store.publish(
                [ChallengeRow(one.name, one.kind, one.token, one.authorization) for one in answers],
                self._owner,
            )
            await self._sync()
            await asyncio.sleep(self.options.spread_seconds)
            await self._in_thread(session.ask)
            await self._until(lambda: session.decided() or None, "checks")
        await self._in_thread(session.finish)
        return await self._until(session.issued, "certificate")

    async def _until(self, ask: Callable[[], T | None], what: str) -> T:
        """Ask every second, until there is an answer."""
        clock = asyncio.get_running_loop().time
        ends = clock() + DECISION_SECONDS
        while True:
            answer = await self._in_thread(ask)
            if answer is not None:
                return answer
            if clock() > ends:
                reason = f"the CA was not done with its {what} after {DECISION_SECONDS:.0f} s"
                raise AcmeFailure("refused", reason, "nothing, if it works later")
            await asyncio.sleep(1)

    def _leave_thread(self) -> None:
        """Take a new thread: the old one may wait for the CA for long, and ends after that."""
        self._threads.shutdown(wait=False)
        self._threads = _new_thread()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ── failures ──────────────────────────────────────────────────────────────────────────────

    def _failed(self, failure: AcmeFailure, before: State) -> None:
        state = self._note(failure, before)
        self.orders["failed"] += 1
        self.problem = judge(state, self.files.issued(), self.options.clock())
        log.error(
            "no certificate was issued; the one that is there stays in use",
            extra={
                "names": self.options.names,
                "reason": str(failure),
                "remedy": failure.remedy,
                "failures": state.failures,
                "again_in": round(state.next_try - state.failed_at),
            },
        )

    def _note(self, failure: AcmeFailure, before: State) -> State:
        """Write down a failure that follows those ``before``."""
        now, failures = self.options.clock(), before.failures + 1
        state = replace(
            before,
            failures=failures,
            code=failure.code,
            reason=str(failure),
            remedy=failure.remedy,
            failed_at=now,
            next_try=now + pause_after(failures, failure.code, self._rng),
        )
        self.files.save(state)
        return state


def _new_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="acme")


def _seconds_to_next_try(state: State, now: float, hurried: bool) -> float:
    if now < state.failed_at:
        return 0.0  # the clock was set back
    return (state.failed_at + SOONEST_RETRY if hurried else state.next_try) - now
