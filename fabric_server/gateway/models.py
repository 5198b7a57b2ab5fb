"""The list of models that a key may use, from the nodes' reports, in each dialect's format.

Models that can't be used now are in OpenAI's and Anthropic's lists, which say why, until their
nodes have been away for an hour.  Ollama's lists have no place for that, and leave them out.

No engine is asked for it, but for ``/api/show``.  ``model_views.py`` has the formats.
"""

from __future__ import annotations

from time import time
from urllib.parse import unquote

import msgspec

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import SHOW
from fabric_server.dialects.error_formats import Dialect
from fabric_server.edge.request import Request
from fabric_server.edge.router import Handler, Router
from fabric_server.gateway import model_views
from fabric_server.gateway.authenticate import authenticate
from fabric_server.gateway.model_views import Model
from fabric_server.gateway.options import read_variant
from fabric_server.gateway.requirements import check_variant
from fabric_server.nodes.registry import Registry
from fabric_server.routing.absence import find_absence
from fabric_server.routing.aliases import WILDCARD, Aliases, find_names, other_spelling
from fabric_server.routing.load_balancer import reports_of
from fabric_server.routing.variants import WantedVariant

OLLAMA_VERSION = "0.14.0"
"""The version of Ollama's API, for clients that compare: the first one with Messages."""
MAX_SHOW_BODY = 64 * 1024
"""Bytes of the body of ``/api/show``."""

_MANAGEMENT = (
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
    """The field of older clients."""


_decode_show = msgspec.json.Decoder(_Show).decode


class ModelCatalog:
    """Handlers that list and show models, and what clients request to find out who answers."""

    def __init__(
        self,
        authenticator: KeyAuthenticator,
        registry: Registry,
        aliases: Aliases,
        complete: Handler,
    ) -> None:
        """``complete`` has an engine answer a request."""
        self._authenticator = authenticator
        self._registry = registry
        self.aliases = aliases
        self._complete = complete
        self._started = int(time())

    def add_to(self, router: Router) -> None:
        router.add("GET", "/", self.greet)
        router.add("GET", "/health", self.health)
        router.add("GET", "/v1/models", self.models)
        router.add("GET", "/v1/models/*", self.model)
        router.add("GET", "/ollama", self.greet_ollama)
        for start in ("/api", "/ollama/api"):
            router.add("GET", f"{start}/version", self.version)
            router.add("GET", f"{start}/tags", self.tags)
            router.add("GET", f"{start}/ps", self.running)
            router.add("POST", f"{start}/show", self.show)
            for method, name in _MANAGEMENT:
                router.add(method, f"{start}/{name}", self.refuse_management)

    # ── without a key ─────────────────────────────────────────────────────────────────────────

    async def greet(self, request: Request) -> None:
        if b"ollama" in request.headers.get(b"user-agent", b"").lower():
            await self.greet_ollama(request)
        else:
            request.respond(200, b'{"name":"fabric","api":"/v1"}')

    async def greet_ollama(self, request: Request) -> None:
        """Answer with the text by which clients recognise an Ollama."""
        text = b"Ollama is running"
        request.start_response(200, [(b"content-type", b"text/plain; charset=utf-8")], len(text))
        request.response.write(text)
        request.response.finish()

    async def version(self, request: Request) -> None:
        request.respond(200, _json({"version": OLLAMA_VERSION}))

    async def refuse_management(self, request: Request) -> None:
        raise errors.managed_elsewhere()

    # ── lists ─────────────────────────────────────────────────────────────────────────────────

    async def health(self, request: Request) -> None:
        """Answer that this port answers; operators have ``/health/ready`` on theirs."""
        request.respond(200, b'{"status":"ok"}')

    async def models(self, request: Request) -> None:
        models = self._all(await authenticate(self._authenticator, request))
        if request.dialect is Dialect.ANTHROPIC:
            request.respond(200, _json(model_views.anthropic_list(models, self._started)))
            return
        views = [model_views.openai(model, self._started) for model in models]
        request.respond(200, _json({"object": "list", "data": views}))

    async def model(self, request: Request) -> None:
        key = await authenticate(self._authenticator, request)
        model = self._one(unquote(request.path.removeprefix("/v1/models/")), key)
        anthropic = request.dialect is Dialect.ANTHROPIC
        view = model_views.anthropic if anthropic else model_views.openai
        request.respond(200, _json(view(model, self._started)))

    async def tags(self, request: Request) -> None:
        models = self._usable(await authenticate(self._authenticator, request))
        rows = [model_views.ollama(model, self._started) for model in models]
        request.respond(200, _json({"models": rows}))

    async def running(self, request: Request) -> None:
        models = self._usable(await authenticate(self._authenticator, request))
        rows = [model_views.running(model, time()) for model in models if model.loaded]
        request.respond(200, _json({"models": rows}))

    # ── one model, as Ollama shows it ─────────────────────────────────────────────────────────

    async def show(self, request: Request) -> None:
        """Show one model: by an Ollama that serves it, or else from its node's report."""
        key = await authenticate(self._authenticator, request)
        name = await _read_show(request)
        wanted, model = read_variant(request.headers), self._one(name, key)
        if model.absence is not None and not model.engines:
            absence = model.absence
            raise errors.no_capacity(name, absence.retry_after, why=str(absence))
        if wanted is not None:
            model = _only(model, wanted)
        if any(SHOW.path in engine.paths for engine in model.engines):
            # A body of our own: two parsers could read the client's differently.
            request.body.put_back(_json({"model": name}))
            await self._complete(request)
        else:
            request.respond(200, _json(model_views.show(model, self._started)))

    # ── small parts ───────────────────────────────────────────────────────────────────────────

    def _all(self, key: Key) -> list[Model]:
        registry = self._registry
        plain = (name for name in self.aliases if WILDCARD not in name)
        names = {*registry.models(), *registry.departed_models(), *plain}
        found = (self._find(name) for name in sorted(names) if key.allows(name))
        return [model for model in found if model is not None]

    def _usable(self, key: Key) -> list[Model]:
        return [model for model in self._all(key) if model.absence is None]

    def _one(self, name: str, key: Key) -> Model:
        """Return one model.  Raises the same ApiError when it is not known, or not for the key."""
        found = (self._find(spelling) for spelling in (name, other_spelling(name)))
        model = min(filter(None, found), key=_rank, default=None)
        if model is None or not key.allows(name):
            raise errors.model_not_found(name)
        return model

    def _find(self, name: str) -> Model | None:
        """Return a model that can be used; else one that is connected; else one that was."""
        registry, found = self._registry, list[Model]()
        reals = self.aliases.get(name)
        if reals is None:
            reals = (not registry.is_known(name) and find_names(self.aliases, name)) or (name,)
        for real in reals:
            engines = registry.candidates(real)
            if engines or registry.is_known(real):
                absence = find_absence(engines, registry.gone_for(real), time())
                found.append(Model(name, engines, reports_of(engines, real), absence))
        return min(found, key=_rank, default=None)


def _rank(model: Model) -> tuple[bool, bool]:
    return model.absence is not None, not model.engines


def _only(model: Model, wanted: WantedVariant) -> Model:
    """Return the model as its engines with these weights have it.  Raises ApiError: 404."""
    check_variant(model.name, wanted, model.reports)
    both = zip(model.engines, model.reports, strict=True)
    fit = [(engine, report) for engine, report in both if wanted.matches(report)]
    return Model(model.name, [engine for engine, _ in fit], [report for _, report in fit])


async def _read_show(request: Request) -> str:
    body = request.body
    data = b""
    while True:
        data += body.take()
        if len(data) > MAX_SHOW_BODY:
            raise errors.body_too_large(MAX_SHOW_BODY)
        if body.complete:
            break
        await body.more()
    try:
        shown = _decode_show(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_json(str(error)) from None
    name = shown.model or shown.name
    if not name:
        raise errors.bad_field("model", "'model' is missing; it must be the name of a model.")
    return name
