"""Which models there are, as users are told: from what nodes report, for what a key may use.

Nobody is asked meanwhile.  Each dialect has its own words for the same (``model_cards.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time
from urllib.parse import unquote

import msgspec

from fabric_server.auth.keys import Accounts, Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import SHOW
from fabric_server.dialects.error_formats import Dialect
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from fabric_server.gateway import model_views as model_cards
from fabric_server.gateway.authenticate import authenticate
from fabric_server.gateway.model_views import Model
from fabric_server.nodes.registry import Engine, Registry
from fabric_server.routing.aliases import Aliases, other_spelling
from fabric_server.routing.load_balancer import model_report
from protocol.messages import ModelReport

OLLAMA_VERSION = "0.14.0"
"""Whose API is spoken here, for clients that compare: the first that has Messages, too."""
MAX_SHOW = 64 * 1024
"""Bytes of a question for one model."""

_MANAGING = (
    ("POST", "pull"),
    ("POST", "push"),
    ("POST", "create"),
    ("POST", "copy"),
    ("DELETE", "delete"),
    ("POST", "blobs/*"),
    ("GET", "blobs/*"),
)
_json = msgspec.json.Encoder().encode


class _Show(msgspec.Struct):
    model: str | None = None
    name: str | None = None
    """Older clients'."""


_decode_show = msgspec.json.Decoder(_Show).decode


class ModelCatalog:
    def __init__(
        self, accounts: Accounts, registry: Registry, aliases: Aliases, relay: Handler
    ) -> None:
        """``relay`` asks an engine."""
        self._accounts = accounts
        self._registry = registry
        self.aliases = aliases
        self._relay = relay
        self._started = int(time())

    def add_to(self, public: Router) -> None:
        public.add("GET", "/", self.greet)
        public.add("GET", "/health", self.health)
        public.add("GET", "/v1/models", self.models)
        public.add("GET", "/v1/models/*", self.model)
        public.add("GET", "/ollama", self.greet_ollama)
        for start in ("/api", "/ollama/api"):
            public.add("GET", f"{start}/version", self.version)
            public.add("GET", f"{start}/tags", self.tags)
            public.add("GET", f"{start}/ps", self.running)
            public.add("POST", f"{start}/show", self.show)
            for method, name in _MANAGING:
                public.add(method, f"{start}/{name}", self.refuse_managing)

    # ── without a key ─────────────────────────────────────────────────────────────────────────

    async def greet(self, request: Request) -> None:
        if b"ollama" in request.headers.get(b"user-agent", b"").lower():
            await self.greet_ollama(request)
        else:
            request.respond(200, b'{"name":"fabric","api":"/v1"}')

    async def greet_ollama(self, request: Request) -> None:
        """By these words its clients know that there is one."""
        said = b"Ollama is running"
        request.start_response(200, [(b"content-type", b"text/plain; charset=utf-8")], len(said))
        request.response.write(said)
        request.response.finish()

    async def version(self, request: Request) -> None:
        request.respond(200, _json({"version": OLLAMA_VERSION}))

    async def refuse_managing(self, request: Request) -> None:
        raise errors.managed_elsewhere()

    # ── lists ─────────────────────────────────────────────────────────────────────────────────

    async def health(self, request: Request) -> None:
        """That this port answers; operators ask ``/health/ready`` of theirs."""
        request.respond(200, b'{"status":"ok"}')

    async def models(self, request: Request) -> None:
        models = self._all(await authenticate(self._accounts, request))
        if request.dialect is Dialect.ANTHROPIC:
            request.respond(200, _json(model_cards.anthropic_list(models, self._started)))
            return
        cards = [model_cards.openai(model, self._started) for model in models]
        request.respond(200, _json({"object": "list", "data": cards}))

    async def model(self, request: Request) -> None:
        key = await authenticate(self._accounts, request)
        model = self._one(unquote(request.path.removeprefix("/v1/models/")), key)
        anthropic = request.dialect is Dialect.ANTHROPIC
        made = model_cards.anthropic if anthropic else model_cards.openai
        request.respond(200, _json(made(model, self._started)))

    async def tags(self, request: Request) -> None:
        models = self._all(await authenticate(self._accounts, request))
        rows = [model_cards.ollama(model, self._started) for model in models]
        request.respond(200, _json({"models": rows}))

    async def running(self, request: Request) -> None:
        models = self._all(await authenticate(self._accounts, request))
        rows = [model_cards.running(model, time()) for model in models if model.loaded]
        request.respond(200, _json({"models": rows}))

    # ── one model, as Ollama shows it ─────────────────────────────────────────────────────────

    async def show(self, request: Request) -> None:
        """By an engine that can, else from what its node reports."""
        key = await authenticate(self._accounts, request)
        name = await _read_show(request)
        model = self._one(name, key)
        if any(SHOW.path in engine.paths for engine in model.engines):
            # Ours, not the user's: what two readers could understand differently is not in it.
            request.body.put_back(_json({"model": name}))
            await self._relay(request)
        else:
            request.respond(200, _json(model_cards.show(model, self._started)))

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _all(self, key: Key) -> list[Model]:
        names = {*self._registry.models(), *self.aliases}
        found = (self._find(name) for name in sorted(names) if key.allows(name))
        return [model for model in found if model is not None]

    def _one(self, name: str, key: Key) -> Model:
        """Raises Refusal when it is not served, or not for this key, without saying which."""
        model = self._find(name) or self._find(other_spelling(name))
        if model is None or not key.allows(name):
            raise errors.model_not_found(name)
        return model

    def _find(self, name: str) -> Model | None:
        for real in self.aliases.get(name, (name,)):
            engines = self._registry.candidates(real)
            if engines:
                return Model(name, engines, _cards(engines, real))
        return None


def _cards(engines: Sequence[Engine], name: str) -> list[ModelReport]:
    return [told for engine in engines if (told := model_report(engine, name)) is not None]


async def _read_show(request: Request) -> str:
    body = request.body
    data = b""
    while True:
        data += body.take()
        if len(data) > MAX_SHOW:
            raise errors.body_too_large(MAX_SHOW)
        if body.complete:
            break
        await body.more()
    try:
        asked = _decode_show(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None
    name = asked.model or asked.name
    if not name:
        raise errors.bad_field("model", "'model' is missing: it must name a model, as a string.")
    return name
