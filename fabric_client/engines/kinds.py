"""Detects the kind of an engine by what it answers.

Only documents are asked for, and as few as possible: some engines log each path that they don't
have as an error.  Engines that imitate others are told first: LocalAI, SGLang and KoboldCpp answer
Ollama's ``/api/version`` too.
"""

from __future__ import annotations

from fabric_client.engines.asking import Asking, Response
from fabric_client.engines.probes import (
    detect_kind,
    has_no_owners,
    is_empty,
    is_info_of_tgi,
    is_list,
    is_version,
    owns_itself,
)


async def identify(asking: Asking, models: Response) -> str | None:
    """Return the kind of engine; None if nothing tells.  ``models`` answered ``/v1/models``.

    Raises ``ProbeError``.
    """
    kind = detect_kind(models.document, models.server)
    if kind is not None:
        return kind
    if models.status == 401 and models.server == "uvicorn":
        # With --api-key vLLM guards /v1 only.
        return "vllm" if is_version((await asking.get("/version")).document) else None
    if not is_list(models.document, "data"):
        return None
    if has_no_owners(models.document):
        system = await asking.get("/system")
        if is_list(system.document, "backends"):
            return "localai"
    if is_version((await asking.get("/api/version")).document):
        return "ollama"
    if owns_itself(models.document) and is_info_of_tgi((await asking.get("/info")).document):
        return "tgi"
    if is_empty(models.document, "data"):
        # An empty list has no `owned_by` to detect the kind by.
        for path, key in (("/api/v0/models", "data"), ("/api/v1/models", "models")):
            if is_list((await asking.get(path)).document, key):
                return "lm-studio"
    return None
