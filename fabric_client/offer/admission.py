"""Admits requests for models that are offered, and no others, whatever the server asks for.

The engine reads the body by rules of its own: it may take ``Model`` for ``model``, or the first of
two.  So what it is sent has the name once, in the one spelling that all of them read alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from msgspec import Raw

from fabric_client.offer.forms import FORM_TYPE, read_form
from fabric_client.offer.offered import Offered
from fabric_client.translation import Headers, TranslationError
from fabric_client.translation.lenient_json import decode_fields

CHOOSERS = frozenset(
    {
        *("models", "model_id", "model_list", "model_name", "model_path", "base_model"),
        *("draft_model", "engine", "deployment_id", "fallbacks", "default_fallbacks"),
        *("context_window_fallbacks", "extra_body", "litellm_params"),
        *("lora", "loras", "lora_adapters", "lora_id", "lora_name", "lora_path", "lora_request"),
        *("adapter", "adapters", "adapter_id", "adapter_name", "adapter_source"),
    }
)
"""Fields beside ``model`` by which some engine chooses a model or an adapter (llama-server, SGLang,
LoRAX, TGI, LiteLLM, OpenRouter).  Nodes that hold back a model refuse them."""
_CONTENTS = frozenset(
    {
        *("messages", "input", "prompt", "system", "instructions", "metadata", "suffix"),
        *("query", "documents", "text_1", "text_2", "queries", "items", "response_format"),
        *("format", "template", "text", "user"),
    }
)
"""Fields that the model reads or that shape its answer: a ``model`` in them chooses none."""
_MODEL_INSIDE = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")', re.IGNORECASE)
"""In JSON text a quote inside a string is written ``\\"``, so this can only be a key."""
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class NotOffered(Exception):
    """The request is for a model that is not offered; the message does not say which."""


class Admitted(NamedTuple):
    body: bytes
    """The request's body, which names the model once; in a form it is the engine's name already."""
    asked: str
    own: str
    """The name by which the engine is asked."""
    is_form: bool = False


def admit(offered: Offered, path: str, headers: Headers, body: bytes) -> Admitted:
    """Return the body that an engine may get.

    Raises ``NotOffered``, or ``TranslationError`` for one in which the model can't be read for
    certain.
    """
    types = [value for name, value in headers if name.lower() == "content-type"]
    if path.startswith("/v1/audio/") and any(FORM_TYPE.match(one) for one in types):
        return _admit_form(offered, types, body)
    try:
        fields = decode_fields(body)
    except _UNREADABLE:
        raise TranslationError("model", "The body is no JSON object.") from None
    names = ("model", "name") if path == "/api/show" else ("model",)
    given = [key for key in fields if key.casefold() in names]
    if any(key not in names for key in given):
        raise TranslationError("model", "'model' must be given once, in lower case.")
    asked = _text(fields.get("model")) or ("name" in given and _text(fields["name"]))
    if not asked:
        raise TranslationError("model", "'model' is missing; it must be the name of a model.")
    kept = {key: value for key, value in fields.items() if key not in given}
    own = offered.find(asked)
    if own is None:
        raise NotOffered("no model of that name is offered")
    if offered.restricted:
        _refuse_choosers(kept)
        for key, value in kept.items():
            if key.casefold() not in _CONTENTS:
                _check_inside(offered, bytes(value))
    return Admitted(msgspec.json.encode({"model": asked, **kept}), asked, own)


def with_model(body: bytes, own: str) -> bytes:
    """Return a body that was admitted with the engine's name for the model."""
    return msgspec.json.encode({**decode_fields(body), "model": own})


def _admit_form(offered: Offered, types: list[str], body: bytes) -> Admitted:
    form = read_form(types, body)
    asked = form.value("model")
    own = offered.find(asked)
    if own is None:
        raise NotOffered("no model of that name is offered")
    if offered.restricted:
        _refuse_choosers(form.names)
    return Admitted(form.encode({"model": own}), asked, own, is_form=True)


def _refuse_choosers(keys: Iterable[str]) -> None:
    for key in keys:
        if key.casefold() in CHOOSERS:
            raise TranslationError(
                key, f"{key!a} is not taken: the node of this model offers some models only."
            )


def _check_inside(offered: Offered, value: bytes) -> None:
    """Raise ``NotOffered`` if an object inside names another model."""
    if rb"\u" in value:
        value = msgspec.json.encode(msgspec.json.decode(value))
    for found in _MODEL_INSIDE.finditer(value):
        name = _text(Raw(found[1]))
        if name is None or offered.find(name) is None:
            raise NotOffered("no model of that name is offered")


def _text(value: Raw | None) -> str | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=str)
    except _UNREADABLE:
        return None
