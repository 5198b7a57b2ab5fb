"""A model in the format of each dialect.

Facts that no node reports are left out, or empty where clients insist on the field; none is made
up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from fabric_server.nodes.node import Engine
from fabric_server.routing.absence import Absence
from fabric_server.routing.variants import count_variants
from protocol.messages import ModelReport

UNLOAD_SECONDS = 300.0
"""Seconds without a request after which Ollama unloads a model; the time left is not reported."""
_FORMATS = {"ollama": "gguf", "llama-server": "gguf", "vllm": "safetensors"}
_DEFAULT_CAPABILITIES = ["completion"]
_LABELS = ("quantization", "digest", "family", "parameter_size")
"""Fields of ``ModelReport`` that OpenAI's object gets, besides the context."""


class Model:
    """One name, and the reports of all engines that serve it: none while all of them are away."""

    def __init__(
        self,
        name: str,
        engines: Sequence[Engine],
        reports: Sequence[ModelReport],
        absence: Absence | None = None,
    ) -> None:
        """``absence`` is the reason for which no request can be answered now."""
        self.name = name
        self.engines = engines
        self.reports = reports
        self.absence = absence

    @property
    def availability(self) -> dict[str, Any]:
        """Fields of a model that can't be used now: why, and until when; others have none."""
        absence = self.absence
        if absence is None:
            return {}
        fields: dict[str, Any] = {"available": False, "unavailable_reason": f"{absence}."}
        if absence.back_at is not None:
            fields["back_at"] = math.ceil(absence.back_at)
        return fields

    @property
    def context(self) -> int | None:
        """The longest context of its engines: a request goes to one that can take it."""
        return max((report.context_length or 0 for report in self.reports), default=0) or None

    @property
    def size(self) -> int:
        return max((report.size or 0 for report in self.reports), default=0)

    @property
    def loaded(self) -> bool:
        return any(report.loaded for report in self.reports)

    @property
    def capabilities(self) -> list[str]:
        names = dict.fromkeys(name for report in self.reports for name in report.capabilities)
        return list(names) or _DEFAULT_CAPABILITIES

    def agreed(self, field: str) -> str:
        """Return what all of its engines tell in a field of ``ModelReport``; empty otherwise."""
        return _only_one(getattr(report, field) for report in self.reports)

    @property
    def format(self) -> str:
        both = zip(self.engines, self.reports, strict=True)
        return _only_one(report.format or _FORMATS.get(one.kind, "") for one, report in both)

    @property
    def details(self) -> dict[str, Any]:
        family = self.agreed("family")
        return {
            "parent_model": "",
            "format": self.format,
            "family": family,
            "families": [family] if family else None,
            "parameter_size": self.agreed("parameter_size"),
            "quantization_level": self.agreed("quantization"),
        }

    @property
    def digest(self) -> str:
        """The digest of the weights if all of its engines tell the same one; else one of the name,
        because clients insist on it."""
        return self.agreed("digest") or sha256(self.name.encode()).hexdigest()

    @property
    def variants(self) -> list[dict[str, Any]]:
        """The different weights that its engines serve; empty when all serve the same."""
        found = count_variants(self.reports)
        if len(found) < 2:
            return []
        return [
            {
                "quantization": one.quantization or None,
                "digest": one.digest or None,
                "engines": count,
            }
            for one, count in found
        ]


def _only_one(values: Iterable[str]) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else ""


def openai(model: Model, since: int) -> dict[str, Any]:
    """Return OpenAI's object, with ``available: false`` and the reason if it can't be used now,
    ``context_window``, which LlamaIndex and others read, vLLM's ``max_model_len``, and what
    engines tell of the weights."""
    view: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": since,
        "owned_by": "fabric",
        **model.availability,
    }
    if model.context is not None:
        view |= {"context_window": model.context, "max_model_len": model.context}
    view |= {field: told for field in _LABELS if (told := model.agreed(field))}
    if variants := model.variants:
        view["variants"] = variants
    return view


def anthropic(model: Model, since: int) -> dict[str, Any]:
    """Return Anthropic's object, with ``available: false`` and the reason if it can't be used."""
    view: dict[str, Any] = {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": _moment(since),
        "lifecycle": "active",
        **model.availability,
    }
    if model.context is not None:
        view["max_input_tokens"] = model.context
    return view


def anthropic_list(models: Sequence[Model], since: int) -> dict[str, Any]:
    views = [anthropic(model, since) for model in models]
    first, last = (views[0]["id"], views[-1]["id"]) if views else (None, None)
    return {"data": views, "has_more": False, "first_id": first, "last_id": last}


def ollama(model: Model, since: int) -> dict[str, Any]:
    """Return a row of ``/api/tags``."""
    details = model.details
    if model.context is not None:
        details["context_length"] = model.context
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _moment(since),
        "size": model.size,
        "digest": model.digest,
        "details": details,
        "capabilities": model.capabilities,
    }


def running(model: Model, now: float) -> dict[str, Any]:
    """Return a row of ``/api/ps``."""
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
        "expires_at": _moment(now + UNLOAD_SECONDS),
        "size_vram": model.size,
        "context_length": model.context or 0,
    }


def show(model: Model, since: int) -> dict[str, Any]:
    """Return ``/api/show`` for a model that no Ollama serves."""
    info: dict[str, Any] = {"general.basename": model.name}
    if model.context is not None:
        # Clients look for "<architecture>.context_length", by this key's value.
        info |= {"general.architecture": "fabric", "fabric.context_length": model.context}
    return {
        "parameters": "",
        "template": "",
        "details": model.details,
        "model_info": info,
        "capabilities": model.capabilities,
        "modified_at": _moment(since),
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
