"""The local inference engines: finds them, and asks for their health and models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import aiohttp
import msgspec

from fabric_client.engines.addresses import Address, local
from fabric_client.engines.probes import (
    DIALECTS,
    Facts,
    complaint,
    detect_kind,
    is_empty,
    is_list,
    without_models,
)
from fabric_client.offer.offered import NOTHING, choose
from fabric_client.offer.patterns import EVERYTHING, Offer
from fabric_client.translation.paths import PathHandlers, native_paths, path_handlers, trim_openapi
from protocol.messages import EngineReport

MAX_ENGINES = 16
"""The most that a report may list."""

DEFAULT_PORTS: Mapping[str, int] = {
    kind: dialect.port for kind, dialect in DIALECTS.items() if dialect.port is not None
}
"""The port that each kind listens on unless configured otherwise."""

PROBE_TIMEOUT = 4.0
"""Time in seconds for an engine to answer a question about itself."""

_MAX_BYTES = 4 * 2**20
_MAX_SLOTS = 4096


class _ProbeError(Exception):
    """The engine gave no facts.

    ``slow``: it may just be busy; ``unfit``: another kind of engine, or none, answers there.
    """

    def __init__(self, sentence: str, *, slow: bool = False, unfit: bool = False) -> None:
        super().__init__(sentence)
        self.slow = slow
        self.unfit = unfit


class _Response(NamedTuple):
    status: int
    server: str
    document: object


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The owner's settings for all engines."""

    slots: int | None = None
    """Concurrent requests; None: as each engine reports."""
    offer: Offer = EVERYTHING
    """The models that are offered."""
    timeout: float = PROBE_TIMEOUT
    """Time in seconds for an engine to answer a question."""


DEFAULTS = EngineSettings()


class Engine:
    """One engine: its name, its address, and its last report.

    ``name`` is unique among the engines of a ``Watcher``.  Nothing here raises for an engine that
    is down or sends nonsense; ``report`` has the problem instead.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        address: Address,
        settings: EngineSettings = DEFAULTS,
    ) -> None:
        self.address = address
        self._session = session
        self._settings = settings
        self._found = address.kind
        self._facts = Facts([], 0)
        self._problem: str | None = "It was not probed yet."
        self._late = False
        self._unsure = address.kind is None
        """The kind must be detected: another engine may have taken the port."""
        self._absent: set[str] = set()
        """Paths that the engine does not have."""
        self._cached: dict[str, object] = {}
        """Documents by path that need be fetched only once."""
        self.path_handlers: PathHandlers = {}
        """Translators for the public paths that the engine can be asked on; None: as it is."""
        self.offered = NOTHING
        """The models that it offers to others, and the rest, which is held back."""
        self.name = self.kind
        self.active = 0
        """Requests that hold its slots, counted by ``SlotTable``: while there are any, a late
        response to a probe means busy."""

    def __repr__(self) -> str:
        return f"<Engine {self.name} {self.kind} {self.url} {self._problem or 'healthy'}>"

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def kind(self) -> str:
        """The kind, configured or detected; until then ``openai``, which any of them resembles."""
        return self._found or "openai"

    @property
    def healthy(self) -> bool:
        return self._problem is None

    @property
    def slots(self) -> int:
        """Concurrent requests: as configured, or as the engine reports.  A dead engine has none."""
        return (
            min(self._settings.slots or self._facts.slots, _MAX_SLOTS)
            if self._problem is None
            else 0
        )

    @property
    def report(self) -> EngineReport:
        """The results of the last probe."""
        return EngineReport(
            name=self.name,
            kind=self.kind,
            healthy=self.healthy,
            slots=self.slots,
            models=self.offered.models,
            problem=self._problem,
            paths=sorted(self.path_handlers),
        )

    @property
    def must_check_names(self) -> bool:
        """Return whether the model of each request must be looked up.

        Ollama runs any model that it is asked for, also those that it does not list.
        """
        offered = self.offered
        return offered.restricted or bool(offered.renamed) or self.kind == "ollama"

    def change_offer(self, offer: Offer) -> None:
        """Offer other models from now on; slots and paths are right after the next ``probe``."""
        self._settings = replace(self._settings, offer=offer)
        self.offered = choose(self._facts.models, self.kind, offer, self.offered)

    async def probe(self) -> EngineReport:
        """Ask for everything, and return the new ``report``."""
        try:
            self._facts = await self._fetch_all()
        except _ProbeError as error:
            self._note(error)
        else:
            self._problem = None
            self._late = False
        return self.report

    async def alive(self) -> bool:
        """Ask only whether the engine can serve; cheap enough to do every few seconds.

        If the result differs from ``healthy``, ``probe`` it.
        """
        try:
            answer = await self._get(DIALECTS["openai" if self._unsure else self.kind].alive)
        except _ProbeError as error:
            self._note(error)
            return self.healthy
        self._late = False
        return answer.status == 200

    def _note(self, error: _ProbeError) -> None:
        # Forgive a healthy engine one late response: it may be loading a model, or computing on
        # every core.  Forgive more while requests of ours run there.
        excused = error.slow and self.healthy and (self.active > 0 or not self._late)
        self._late = error.slow
        if excused:
            return
        self._problem = str(error)[:1024]
        self._unsure = self.address.kind is None
        self._forget()

    def _forget(self) -> None:
        """Drop what was learnt: another engine may have taken the port."""
        self._absent.clear()
        self._cached.clear()

    async def _identify(self) -> str:
        """Detect the kind.

        Asks first for the path that all of them have: LM Studio logs any other as an error.
        """
        models = await self._get("/v1/models")
        kind = detect_kind(models.document, models.server)
        if kind is None:
            self._expect(models, "data")
            version = (await self._get("/api/version")).document
            if isinstance(version, dict) and isinstance(version.get("version"), str):
                kind = "ollama"
        if kind is None and is_empty(models.document, "data"):
            # An empty list has no `owned_by` to detect the kind by.
            native = await self._get("/api/v0/models")
            kind = "lm-studio" if is_list(native.document, "data") else None
        self._found = kind or "openai"
        self._unsure = False
        return self._found

    async def _fetch_all(self) -> Facts:
        if self._unsure:
            await self._identify()
        try:
            return await self._fetch_as(self.kind)
        except _ProbeError as error:
            if self.address.kind is not None or not error.unfit:
                raise
        # Another kind of engine was started on the port since the last probe.
        self._forget()
        return await self._fetch_as(await self._identify())

    async def _fetch_as(self, kind: str) -> Facts:
        dialect = DIALECTS[kind]
        required, *others = dialect.paths
        answer = await self._get(required)
        self._expect(answer, dialect.holds)
        documents = {required: answer.document}
        for path in others:
            if path in self._absent:
                continue
            extra = await self._get(path)
            if extra.status == 200 and complaint(extra.document) is None:
                documents[path] = extra.document
            elif extra.status < 500:
                self._absent.add(path)
        once = await self._fetch_once(dialect.once)
        facts = dialect.read(documents)
        offered = choose(facts.models, kind, self._settings.offer, self.offered)
        # Slots are those of the models that are offered, too: nothing is told of the others.
        shown = without_models(documents, offered.hidden_names)
        facts = Facts(facts.models, dialect.read(shown).slots)
        native = native_paths(kind, documents | once, offered.models)
        self.offered, self.path_handlers = offered, path_handlers(kind, native)
        return facts

    async def _fetch_once(self, paths: Sequence[str]) -> dict[str, object]:
        for path in paths:
            if path in self._cached or path in self._absent:
                continue
            try:
                answer = await self._get(path)
            except _ProbeError as error:  # no engine needs to have it
                if not error.slow:
                    self._absent.add(path)
                continue
            if answer.status == 200:
                self._cached[path] = trim_openapi(answer.document)
            elif answer.status < 500:
                self._absent.add(path)
        return self._cached

    def _expect(self, answer: _Response, key: str) -> None:
        text = complaint(answer.document)
        detail = f": {self._without_private(text[:200])}" if text else ""
        if answer.status in (401, 403):
            raise _ProbeError(
                f"{self.url} requires an API key ({answer.status}{detail}), which a node does not "
                f"send: start the engine without one."
            )
        if answer.status >= 500:
            raise _ProbeError(f"{self.url} responds with {answer.status}{detail}.")
        if answer.status != 200 or not is_list(answer.document, key):
            raise _ProbeError(
                f"{self.url} is no {self._found or 'inference engine'} ({answer.status}{detail}).",
                unfit=True,
            )

    def _without_private(self, text: str) -> str:
        """Return what may be told of an engine's error; nothing while its models are unknown."""
        if self.offered is NOTHING and self._settings.offer.patterns is not None:
            return "see the engine's log"
        return self.offered.private.hide(text)

    async def _get(self, path: str) -> _Response:
        try:
            async with self._session.get(
                self.url + path,
                headers={"Host": self.address.host},
                timeout=aiohttp.ClientTimeout(total=self._settings.timeout),
                # A node dials only the addresses that its owner set.
                allow_redirects=False,
            ) as response:
                body = await _read(response.content)
                return _Response(response.status, response.headers.get("Server", ""), _decode(body))
        except TimeoutError:
            raise _ProbeError(f"{self.url} did not respond in time.", slow=True) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _ProbeError(f"{self.url} has no trusted certificate: {error}.") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                raise _ProbeError(
                    f"Nothing listens at {self.url}: is the engine running?"
                ) from None
            raise _ProbeError(f"{self.url} can't be reached: {error.strerror or error}.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _ProbeError(
                f"{self.url} gave no valid response: {error or type(error).__name__}."
            ) from None


async def discover(
    session: aiohttp.ClientSession,
    ports: Sequence[int] = tuple(DEFAULT_PORTS.values()),
    settings: EngineSettings = DEFAULTS,
) -> list[Engine]:
    """Return engines on ``ports`` of this machine, with their kind detected, not yet probed."""

    async def at(port: int) -> Engine | None:
        engine = Engine(session, local(port), settings)
        try:
            engine.name = await engine._identify()
        except _ProbeError:
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
            raise ValueError(f"more than {_MAX_BYTES} bytes")
    return bytes(body)


def _decode(body: bytes) -> object:
    """Parse JSON; None if it is none: several health paths return nothing, or a word."""
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
