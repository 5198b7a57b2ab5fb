"""The local inference servers: finding them, and asking how they are and what they serve."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp
import msgspec

from fabric_client.engines.addresses import Address, local
from fabric_client.engines.probes import DIALECTS, Facts, complaint, is_empty, is_list, told_by
from fabric_client.translation.paths import PathHandlers, native_paths, path_handlers, trim_openapi
from protocol.messages import EngineReport

MAX_ENGINES = 16
"""As many as a report may list."""

DEFAULT_PORTS: Mapping[str, int] = {
    kind: dialect.port for kind, dialect in DIALECTS.items() if dialect.port is not None
}

PROBE_TIMEOUT = 4.0
"""Seconds for an engine to answer a question about itself."""

_MAX_BYTES = 4 * 2**20
_MAX_SLOTS = 4096


class _Trouble(Exception):
    """Why there are no facts.  ``slow``: it may just be busy; ``unfit``: another kind of engine,
    or none, answers there."""

    def __init__(self, sentence: str, *, slow: bool = False, unfit: bool = False) -> None:
        super().__init__(sentence)
        self.slow = slow
        self.unfit = unfit


class _Answer(NamedTuple):
    status: int
    server: str
    document: object


class Engine:
    """One engine: what it is called, where it is, and what it last said.

    ``name`` is unique among those a ``Watcher`` looks after.  Nothing here raises for an engine
    that is down or talks nonsense; ``report`` says so instead.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: Address,
        *,
        slots: int | None = None,
        timeout: float = PROBE_TIMEOUT,
    ) -> None:
        self.address = address
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session = session
        self._slots = slots
        self._found = address.kind
        self._facts = Facts([], 0)
        self._problem: str | None = "It has not been asked yet."
        self._late = False
        self._unsure = address.kind is None  # of the kind: another engine may have taken the port
        self._absent: set[str] = set()  # paths that it answered with "no such thing"
        self._kept: dict[str, object] = {}  # what need be asked for only once
        self.path_handlers: PathHandlers = {}
        """How it is asked on the paths of the public API."""
        self.name = self.kind
        self.active = 0
        """Requests running here, counted by who forwards them: while there are any, a slow answer
        to a question of ours means busy."""

    def __repr__(self) -> str:
        return f"<Engine {self.name} {self.kind} {self.url} {self._problem or 'healthy'}>"

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def kind(self) -> str:
        """As configured or found out; until then ``openai``, which any of them resembles."""
        return self._found or "openai"

    @property
    def healthy(self) -> bool:
        return self._problem is None

    @property
    def slots(self) -> int:
        """Requests that it answers at once.  What is configured wins; a dead engine has none."""
        return min(self._slots or self._facts.slots, _MAX_SLOTS) if self._problem is None else 0

    @property
    def report(self) -> EngineReport:
        """What it said when last asked."""
        return EngineReport(
            name=self.name,
            kind=self.kind,
            healthy=self.healthy,
            slots=self.slots,
            models=self._facts.models,
            problem=self._problem,
            paths=sorted(self.path_handlers),
        )

    async def probe(self) -> EngineReport:
        """Ask for everything; the answer is also ``report`` from now on."""
        try:
            self._facts = await self._ask_all()
        except _Trouble as trouble:
            self._note(trouble)
        else:
            self._problem = None
            self._late = False
        return self.report

    async def alive(self) -> bool:
        """Ask only whether it can serve; cheap enough to do every few seconds.

        An answer that differs from ``healthy`` is a reason to ``probe``.
        """
        try:
            answer = await self._ask(DIALECTS["openai" if self._unsure else self.kind].alive)
        except _Trouble as trouble:
            self._note(trouble)
            return self.healthy
        self._late = False
        return answer.status == 200

    def _note(self, trouble: _Trouble) -> None:
        # One late answer of an engine that was well is no news: it may be loading a model or
        # computing on every core.  A second one is, unless we know what it works on.
        excused = trouble.slow and self.healthy and (self.active > 0 or not self._late)
        self._late = trouble.slow
        if excused:
            return
        self._problem = str(trouble)[:1024]
        self._unsure = self.address.kind is None
        self._forget()

    def _forget(self) -> None:
        """What it said before is of an engine that may not be there any more."""
        self._absent.clear()
        self._kept.clear()

    async def _identify(self) -> str:
        """Find out the kind.  Asks first what all of them know, so that LM Studio, which logs
        every other path as an error, has nothing to log."""
        models = await self._ask("/v1/models")
        kind = told_by(models.document, models.server)
        if kind is None:
            self._expect(models, "data")
            version = (await self._ask("/api/version")).document
            if isinstance(version, dict) and isinstance(version.get("version"), str):
                kind = "ollama"
        if kind is None and is_empty(models.document, "data"):
            # An empty list has no owner to tell by.
            own = await self._ask("/api/v0/models")
            kind = "lm-studio" if is_list(own.document, "data") else None
        self._found = kind or "openai"
        self._unsure = False
        return self._found

    async def _ask_all(self) -> Facts:
        if self._unsure:
            await self._identify()
        try:
            return await self._ask_as(self.kind)
        except _Trouble as trouble:
            if self.address.kind is not None or not trouble.unfit:
                raise
        # One kind of engine was stopped and another started on its port since we last asked.
        self._forget()
        return await self._ask_as(await self._identify())

    async def _ask_as(self, kind: str) -> Facts:
        dialect = DIALECTS[kind]
        required, *others = dialect.asks
        answer = await self._ask(required)
        self._expect(answer, dialect.holds)
        documents = {required: answer.document}
        for path in others:
            if path in self._absent:
                continue
            extra = await self._ask(path)
            if extra.status == 200 and complaint(extra.document) is None:
                documents[path] = extra.document
            elif extra.status < 500:
                self._absent.add(path)
        facts = dialect.read(documents)
        documents |= await self._ask_once(dialect.once)
        self.path_handlers = path_handlers(kind, native_paths(kind, documents, facts.models))
        return facts

    async def _ask_once(self, paths: Sequence[str]) -> dict[str, object]:
        for path in paths:
            if path in self._kept or path in self._absent:
                continue
            try:
                answer = await self._ask(path)
            except _Trouble as trouble:  # nothing that an engine need have
                if not trouble.slow:
                    self._absent.add(path)
                continue
            if answer.status == 200:
                self._kept[path] = trim_openapi(answer.document)
            elif answer.status < 500:
                self._absent.add(path)
        return self._kept

    def _expect(self, answer: _Answer, key: str) -> None:
        words = complaint(answer.document)
        said = f": {words[:200]}" if words else ""
        if answer.status in (401, 403):
            raise _Trouble(
                f"{self.url} wants an API key ({answer.status}{said}); a node sends none, "
                f"so start the engine without."
            )
        if answer.status >= 500:
            raise _Trouble(f"{self.url} answers {answer.status}{said}.")
        if answer.status != 200 or not is_list(answer.document, key):
            raise _Trouble(
                f"What answers at {self.url} is no {self._found or 'inference engine'} "
                f"({answer.status}{said}).",
                unfit=True,
            )

    async def _ask(self, path: str) -> _Answer:
        try:
            async with self._session.get(
                self.url + path,
                headers={"Host": self.address.host},
                timeout=self._timeout,
                # A node dials only what its owner named, not where that points.
                allow_redirects=False,
            ) as response:
                body = await _read(response.content)
                return _Answer(response.status, response.headers.get("Server", ""), _decode(body))
        except TimeoutError:
            raise _Trouble(f"{self.url} did not answer in time.", slow=True) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _Trouble(f"{self.url} has no trusted certificate: {error}.") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                raise _Trouble(f"Nothing listens at {self.url}: is the engine running?") from None
            raise _Trouble(f"{self.url} can't be reached: {error.strerror or error}.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Trouble(f"{self.url} gave no answer: {error or type(error).__name__}.") from None


async def discover(
    session: aiohttp.ClientSession,
    ports: Sequence[int] = tuple(DEFAULT_PORTS.values()),
    *,
    slots: int | None = None,
    timeout: float = PROBE_TIMEOUT,
) -> list[Engine]:
    """Those of this machine's ``ports`` where an engine answers, identified but not yet probed."""

    async def at(port: int) -> Engine | None:
        engine = Engine(session, local(port), slots=slots, timeout=timeout)
        try:
            engine.name = await engine._identify()
        except _Trouble:
            return None
        return engine

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(at(port)) for port in ports]
    return [engine for task in tasks if (engine := task.result()) is not None]


async def _read(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes came")
    return bytes(body)


def _decode(body: bytes) -> object:
    """None for what is no JSON: several health paths answer with nothing or a word."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
