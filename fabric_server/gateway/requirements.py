"""Derives a request's requirements: its model's real name, the engines that can be asked at all,
and the hints by which one is preferred."""

from __future__ import annotations

from collections.abc import Sequence

from fabric_server.dialects import errors
from fabric_server.dialects.endpoints import ENDPOINTS, Endpoint
from fabric_server.dialects.error_formats import Dialect
from fabric_server.dialects.errors import ApiError
from fabric_server.dialects.fields import ParsedBody
from fabric_server.gateway.options import DIGEST, QUANT
from fabric_server.metering.estimate import KEPT, TOKENS_OF_MEDIA, media_tokens
from fabric_server.metering.plausible import output_limit
from fabric_server.nodes.node import Engine
from fabric_server.nodes.registry import Registry
from fabric_server.nodes.standing import RESTING, ROOM
from fabric_server.proxy.request_options import RequestOptions
from fabric_server.proxy.request_record import RequestRecord
from fabric_server.routing.aliases import Aliases, other_spelling, resolve
from fabric_server.routing.capabilities import estimate_tokens, guess_capabilities
from fabric_server.routing.criteria import EngineTerms, Requirements
from fabric_server.routing.load_balancer import in_region, relax_hints, reports_of, supports
from fabric_server.routing.prefix_affinity import prefix_hashes
from fabric_server.routing.variants import WantedVariant, describe_variants
from protocol.messages import ModelReport

_TAKE_TOKEN_IDS = frozenset({"vllm", "llama-server"})


def build_requirements(
    record: RequestRecord,
    endpoint: Endpoint,
    options: RequestOptions,
    registry: Registry,
    aliases: Aliases,
) -> tuple[Requirements, int | None]:
    """Return what an engine must be able to do, and the size of the body that it gets: in bytes,
    None when it is not known.

    Their ``model`` is the model's own name, which the caller puts in the place of an alias.  Raises
    ApiError when no engine that serves the model can be asked this.
    """
    request, parsed, key = record.request, record.parsed, record.key
    body, flowing = request.body, request.body.flowing
    size: int | None = len(body.replay_buffer)
    if flowing is not None:
        size = None if body.length is None else body.length + flowing.growth
    requirements = Requirements(
        parsed.model, key.id, options.priority, regions=options.regions, path=endpoint.path
    )
    kinds = _TAKE_TOKEN_IDS if parsed.token_ids else None
    if kinds or options.variant:
        requirements.terms = EngineTerms(kinds, options.variant)
    requirements.model = model = _real_name(parsed.model, requirements, endpoint, registry, aliases)
    candidates = registry.candidates(model)
    for engine in candidates:
        if supports(engine, requirements):
            break
    else:  # with no engine at all, admission raises the error
        if there := [engine for engine in candidates if in_region(engine, requirements)]:
            _check_variant(parsed.model, requirements, kinds, there)
            raise _no_engine_for_path(parsed, requirements, there)
    requirements.capabilities = guess_capabilities(endpoint, body.replay_buffer)
    requirements.sent_bytes = len(body.replay_buffer)
    requirements.output_limit = output_limit(body.replay_buffer)
    if "vision" in requirements.capabilities:
        requirements.media = body.replay_buffer.count(b'"image')
    if endpoint.form:
        requirements.media_tokens = TOKENS_OF_MEDIA
    elif flowing is None and len(body.replay_buffer) <= KEPT:
        requirements.prompt = body.replay_buffer
    else:
        requirements.media_tokens = media_tokens(body.replay_buffer)
    requirements.tokens = estimate_tokens(endpoint, size, requirements.capabilities)
    if endpoint.prompt_keys:
        salt = f"{key.account}\n{model}".encode()
        requirements.prefix = prefix_hashes(body.replay_buffer, salt, endpoint.prompt_keys)
    relax_hints(candidates, requirements)
    return requirements, size


def _real_name(
    model: str, requirements: Requirements, endpoint: Endpoint, registry: Registry, aliases: Aliases
) -> str:
    """Return the name by which engines know the model."""
    candidates = registry.candidates
    if model in aliases or (aliases and not registry.is_known(model)):
        found = resolve(
            aliases,
            model,
            lambda name: any(
                engine.has_room and supports(engine, requirements, name)
                for engine in candidates(name).up_to(ROOM)
            ),
            lambda name: any(
                engine.may_serve and supports(engine, requirements, name)
                for engine in candidates(name).up_to(RESTING)
            ),
            lambda name: any(supports(engine, requirements, name) for engine in candidates(name)),
            registry.is_known,
        )
        if found != model:
            return found
    if endpoint.dialect is Dialect.OLLAMA and not candidates(model):
        other = other_spelling(model)
        if candidates(other):
            return other
    return model


def _check_variant(
    public_name: str,
    requirements: Requirements,
    kinds: frozenset[str] | None,
    candidates: Sequence[Engine],
) -> None:
    """Raise ApiError if some of these engines could take the request, but for their weights."""
    terms = requirements.terms
    if terms is None or terms.variant is None:
        return
    requirements.terms = EngineTerms(kinds)
    able = [engine for engine in candidates if supports(engine, requirements)]
    if reports := reports_of(able, requirements.model):
        check_variant(public_name, terms.variant, reports)


def check_variant(model: str, wanted: WantedVariant, reports: Sequence[ModelReport]) -> None:
    """Raise ApiError 404 unless one of the reports of the model is of these weights."""
    if any(map(wanted.matches, reports)):
        return
    by_digest = any(wanted.quantization in ("", one.quantization.lower()) for one in reports)
    header = DIGEST if wanted.digest and by_digest else QUANT
    served = describe_variants(reports)
    raise errors.variant_not_found(model, str(wanted), served, header.decode())


def _no_engine_for_path(
    parsed: ParsedBody, requirements: Requirements, candidates: Sequence[Engine]
) -> ApiError:
    """Return the error for a path that no engine of the model serves."""
    if parsed.token_ids and any(requirements.path in engine.paths for engine in candidates):
        text = (
            f"'{requirements.model}' takes text, not token ids: these belong to another model's"
            " tokenizer. With LangChain, set check_embedding_ctx_length=False."
        )
        return errors.bad_field("input", text)
    paths = sorted(set().union(*(engine.paths for engine in candidates)) & ENDPOINTS.keys())
    return errors.path_not_supported(parsed.model, requirements.path, ", ".join(paths) or "nothing")
