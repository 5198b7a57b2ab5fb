"""Readers of what engines tell of a model's weights: digest, quantisation, family, size, format.

Only a digest and short labels leave here.  Names of files and folders are searched for the name of
a quantisation, and nothing else of them is kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from protocol.weights import MAX_LABEL, is_label, parse_digest

_MAX_TEXT = 4096
"""Characters of a name, beyond which it is not searched."""
_IN_A_NAME = re.compile(
    r"(?<![A-Za-z0-9])("
    r"(?:IQ|TQ|Q)[1-8](?:_[0-9A-Z]{1,3}){1,3}"
    r"|Q6_K|BF16|FP?16|FP?32|MXFP4|MXFP6|NVFP4|FP8|INT4|INT8|AWQ|GPTQ(?:-INT[2348])?"
    r"|W[48]A(?:4|8|16)|[2-8]BIT"
    r")(?![A-Za-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_KINDS = {"small": "_S", "medium": "_M", "large": "_L"}
_AS_ONE = {"Q2_K_M": "Q2_K", "IQ3_S_MIX": "IQ3_M"}
"""Names of llama.cpp that differ from those of its own files, and of Ollama."""
_UNKNOWN = frozenset({"unknown", "none", "null"})


class Weights(NamedTuple):
    """Facts of ``ModelReport``; empty text is not known."""

    digest: str = ""
    quantization: str = ""
    family: str = ""
    parameter_size: str = ""
    format: str = ""


NONE = Weights()


def weights(
    *,
    digest: object = None,
    quantization: object = None,
    family: object = None,
    parameter_size: object = None,
    format: object = None,
) -> Weights:
    """Return what an engine tells, as far as it may leave the node; anything else is not known."""
    return Weights(
        parse_digest(digest) if isinstance(digest, str) else "",
        _label(quantization),
        _label(family),
        _label(parameter_size),
        _label(format),
    )


def quantization_of_type(text: object) -> str:
    """Return the quantisation that llama.cpp describes as ``Q4_K - Medium``: ``Q4_K_M``."""
    if not isinstance(text, str) or len(text) > MAX_LABEL:
        return ""
    name, _, more = text.removeprefix("(guessed) ").partition(" - ")
    words = name.removeprefix("all ").split()
    if words[1:] not in ([], ["MoE"], ["mix"]):
        return ""
    found = "".join(words[:1]) + ("_MIX" if words[1:] == ["mix"] else "")
    found += _KINDS.get(more.lower(), "")
    return _label(_AS_ONE.get(found, found))


def quantization_in_name(name: object) -> str:
    """Return the quantisation that a file, folder or repository is named after, if it is."""
    if not isinstance(name, str) or len(name) > _MAX_TEXT:
        return ""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    found = _IN_A_NAME.findall(last)
    return str(found[-1]).upper() if found else ""


def size_of(parameters: int | None) -> str:
    """Return a number of parameters as Ollama writes it: ``8.0B``, ``137M``."""
    if not parameters:
        return ""
    for unit, name, digits in ((10**9, "B", 1), (10**6, "M", 0), (10**3, "K", 0)):
        if parameters >= unit:
            return f"{parameters / unit:.{digits}f}{name}"
    return str(parameters)


def _label(value: object) -> str:
    if not isinstance(value, str) or not is_label(value) or value.lower() in _UNKNOWN:
        return ""
    return value
