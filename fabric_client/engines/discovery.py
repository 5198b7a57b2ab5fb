"""The local inference engines: finds them, and asks for their health and models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from fabric_client.engines.addresses import Address, local
from fabric_client.engines.asking import Asking, ProbeError, Response
from fabric_client.engines.documents import Documents, Facts
from fabric_client.engines.engine_key import EngineKey
from fabric_client.engines.kinds import identify
from fabric_client.engines.probes import (
    DIALECTS,
    PURPOSES,
    complaint,
    is_list,
    listing,
    needs_key,
    run_of_llama_server,
    show_question,
    trim,
    without_models,
)
from fabric_client.offer.offered import NOTHING, Offered, choose
from fabric_client.offer.patterns import EVERYTHING, Offer
from fabric_client.translation.paths import PathHandlers, native_paths, path_handlers
from protocol.messages import EngineReport

MAX_ENGINES = 16
"""The most that a report may list."""

DEFAULT_PORTS: Sequence[int] = tuple(port for one in DIALECTS.values() for port in one.ports)
"""The ports that engines listen on unless configured otherwise."""

PROBE_TIMEOUT = 4.0
"""Time in seconds for an engine to answer a question about itself."""

MAX_SHOWN = 16
"""Models of an Ollama that are asked about in one probe; of more the rest follows in the next."""
_MAX_SLOTS = 4096


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The owner's settings for all engines."""

    slots: int | None = None
    """Concurrent requests; None: as each engine reports."""
    offer: Offer = EVERYTHING
    """The models that are offered."""
    max_num_ctx: int | None = None
    """The largest context that a user of an Ollama may ask for, in tokens; None: none."""
    keys: Mapping[Address, EngineKey] = field(default_factory=dict)
    """The keys of the engines that want one."""
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
        self._asking = Asking(session, address, settings.timeout, settings.keys.get(address))
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
        """Answers that need be asked for only once, by path, or by model."""
        self._listed: object = None
        """The engine's list of models at the last probe; None: the engine must be probed again."""
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
    def key(self) -> EngineKey | None:
        return self._asking.key

    @property
    def outdated(self) -> bool:
        """Return whether its list of models has changed since the last probe."""
        return self.healthy and self._listed is None

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
        if self._problem is not None:
            return 0
        slots = self._settings.slots or self._facts.slots
        return slots if slots < _MAX_SLOTS else _MAX_SLOTS

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

    def must_check_names(self) -> bool:
        """Return whether the model of each request must be looked up.

        Ollama runs any model that it is asked for, also those that it does not list.
        """
        offered = self.offered
        return offered.restricted or bool(offered.renamed) or self._found == "ollama"

    def change_settings(self, settings: EngineSettings) -> None:
        """Keep to other settings from now on; paths are right after the next ``probe``."""
        self._settings = settings
        self._asking.use_key(settings.keys.get(self.address))
        self.offered = self._choose(self._facts, self.kind)

    async def probe(self) -> EngineReport:
        """Ask for everything, and return the new ``report``."""
        try:
            self._facts = await self._fetch_all()
        except ProbeError as error:
            self._note(error)
        else:
            self._problem = None
            self._late = False
        return self.report

    async def alive(self) -> bool:
        """Ask only whether the engine can serve, and lists what it did; cheap enough to do every
        second.

        If the result differs from ``healthy``, or it is ``outdated``, ``probe`` it.
        """
        dialect = DIALECTS["openai" if self._unsure else self.kind]
        try:
            answer = await self._asking.get(dialect.alive)
            alive = answer.status == 200
            if alive and self.healthy:
                path = dialect.paths[0]
                if path != dialect.alive:
                    answer = await self._asking.get(path)
                if listing(answer.document, dialect.holds) != self._listed:
                    self._listed = None
        except ProbeError as error:
            self._note(error)
            return self.healthy
        self._late = False
        return alive

    def _note(self, error: ProbeError) -> None:
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
        """Detect the kind."""
        models = await self._asking.get("/v1/models")
        kind = await identify(self._asking, models)
        if kind is None:
            self._expect(models, "data")
        self._found = kind or "openai"
        if models.status in (401, 403):
            self._expect(models, "data")
        self._unsure = False
        return self._found

    async def _fetch_all(self) -> Facts:
        if self._unsure:
            await self._identify()
        try:
            return await self._fetch_as(self.kind)
        except ProbeError as error:
            if self.address.kind is not None or not error.unfit:
                raise
        # Another kind of engine was started on the port since the last probe.
        self._forget()
        return await self._fetch_as(await self._identify())

    async def _fetch_as(self, kind: str) -> Facts:
        dialect = DIALECTS[kind]
        required, *others = dialect.paths
        answer = await self._asking.get(required)
        self._expect(answer, dialect.holds)
        listed = listing(answer.document, dialect.holds)
        if listed != self._listed:  # it may have been started anew since the last probe
            self._absent.clear()
            self._cached = {name: one for name, one in self._cached.items() if "\n" in name}
        documents: dict[str, object] = {required: answer.document}
        for path in others:
            if path in self._absent:
                continue
            extra = await self._asking.get(path)
            if extra.status == 401:  # 403 is another matter: a page for administrators
                self._expect(extra, dialect.holds)
            if extra.status == 200 and complaint(extra.document) is None:
                documents[path] = extra.document
            elif extra.status < 500:
                self._absent.add(path)
        if needs_key(kind, documents) and self.key is None:
            raise self._asking.locked(401, "")
        documents |= await self._fetch_once(dialect.once)
        documents |= await self._ask_more(kind, documents)
        facts = dialect.read(documents)
        offered = self._choose(facts, kind)
        # Slots are those of the models that are offered, too: nothing is told of the others.
        shown = without_models(documents, offered.hidden_names)
        facts = Facts(facts.models, dialect.read(shown).slots)
        native = native_paths(kind, documents, offered.models)
        self.offered = offered
        self.path_handlers = path_handlers(kind, native, max_num_ctx=self._settings.max_num_ctx)
        self._listed = listed
        return facts

    def _choose(self, facts: Facts, kind: str) -> Offered:
        secret = self.key.value if self.key is not None else ""
        return choose(facts.models, kind, self._settings.offer, self.offered, secret)

    async def _fetch_once(self, paths: Sequence[str]) -> dict[str, object]:
        """Fetch documents that don't change while the engine runs; of ``a|b`` the second if there
        is no first."""
        for path in paths:
            if path not in self._cached and path not in self._absent:
                await self._fetch_first(path)
        return {
            path.partition("|")[0]: self._cached[path] for path in paths if path in self._cached
        }

    async def _fetch_first(self, paths: str) -> None:
        for path in paths.split("|"):
            try:
                answer = await self._asking.get(path)
            except ProbeError as error:  # no engine needs to have it
                if not error.slow:
                    self._absent.add(paths)
                return
            if answer.status == 200:
                self._cached[paths] = trim(path, answer.document)
                return
            if answer.status >= 500:
                return
        self._absent.add(paths)

    async def _ask_more(self, kind: str, documents: Documents) -> dict[str, object]:
        """Ask what takes a body; nothing of it makes an engine load or compute anything."""
        if kind == "ollama":
            return {"/api/show": await self._show_models(documents)}
        if kind == "llama-server":
            return await self._ask_purpose(documents)
        return {}

    async def _show_models(self, documents: Documents) -> dict[str, object]:
        """Return what an Ollama tells of each model, asked once for its weights."""
        wanted = show_question(documents)
        names = set(wanted.values())
        self._cached = {
            name: one for name, one in self._cached.items() if "\n" not in name or name in names
        }
        missing = [one for one in wanted.items() if one[1] not in self._cached]
        for model, name in missing[:MAX_SHOWN]:
            try:
                answer = await self._asking.post("/api/show", {"model": model})
            except ProbeError:  # nothing depends on it: asked again in the next probe
                break
            if answer.status < 500:
                self._cached[name] = trim("/api/show", answer.document)
        most = self._settings.max_num_ctx
        allowed = {} if most is None else {"num_ctx": most}
        shown: dict[str, object] = {}
        for model, name in wanted.items():
            told = self._cached.get(name)
            shown[model] = {**told, **allowed} if isinstance(told, dict) else allowed
        return shown

    async def _ask_purpose(self, documents: Documents) -> dict[str, object]:
        """Return whether a llama-server was started for embeddings and for reranking.

        It answers 501 to a path that it was not started for, before it reads the body, which has
        nothing to do here.  One that sleeps would load its model.
        """
        run = run_of_llama_server(documents)
        if run is not None and run != self._cached.get("run"):
            statuses = {path: (await self._asking.post(path, {})).status for path in PURPOSES}
            told = {
                path: status != 501
                for path, status in statuses.items()
                if status in (200, 400, 501)
            }
            self._cached |= {"run": run, "purpose": told}
        return {"purpose": self._cached.get("purpose", {})}

    def _expect(self, answer: Response, key: str) -> None:
        text = complaint(answer.document)
        detail = f": {self._without_private(text[:200])}" if text else ""
        if answer.status in (401, 403):
            raise self._asking.locked(answer.status, detail)
        if answer.status >= 500:
            raise ProbeError(f"{self.url} responds with {answer.status}{detail}.")
        if answer.status != 200 or not is_list(answer.document, key):
            raise ProbeError(
                f"{self.url} is no {self._found or 'inference engine'} ({answer.status}{detail}).",
                unfit=True,
            )

    def _without_private(self, text: str) -> str:
        """Return what may be told of an engine's error; nothing while its models are unknown."""
        if self.offered is NOTHING and self._settings.offer.patterns is not None:
            return "see the engine's log"
        secret = self.key.value if self.key is not None else ""
        return self.offered.private.hide(text.replace(secret, "(the key)") if secret else text)


async def discover(
    session: aiohttp.ClientSession,
    ports: Sequence[int] = DEFAULT_PORTS,
    settings: EngineSettings = DEFAULTS,
) -> list[Engine]:
    """Return engines on ``ports`` of this machine, with their kind detected, not yet probed.

    One that wants a key is among them if its answer shows that it is an engine.
    """

    async def at(port: int) -> Engine | None:
        engine = Engine(session, local(port), settings)
        try:
            engine.name = await engine._identify()
        except ProbeError as error:
            if not error.locked or engine._found is None:
                return None
            engine.name = engine.kind
        return engine

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(at(port)) for port in ports]
    return [engine for task in tasks if (engine := task.result()) is not None]
