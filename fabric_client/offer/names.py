"""Names for models that an engine knows by a place: a path or a URL shows the owner's folders.

/home/joe/models/tiny.Q4_K_M.gguf                   tiny.Q4_K_M
C:\\Users\\joe\\models\\qwen                            qwen
file:///srv/llama%20chat/                           llama chat
~/.cache/…/models--Qwen--Qwen3-8B/snapshots/1a2b    Qwen/Qwen3-8B
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MAX_NAME = 256
MAX_PLACE = 4096
"""Characters of a place, by which an engine is asked."""

_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/]|$)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:", re.IGNORECASE)
_HUB = re.compile(r"(?:^|/)(?:models|datasets)--([^/]+)")
"""A folder of Hugging Face's cache: the slash in a repository's name is written as ``--``."""
_PLACES = ("/", "\\", "~", ".", "$", "%")
"""First characters of paths, with variables in them perhaps; no repository's name has one."""
_FILES = (".gguf", ".ggml", ".safetensors", ".bin", ".pt", ".pth", ".onnx")
_ASK_BY_PATH = frozenset({"vllm", "llama-server"})
"""Kinds whose models are repositories or paths: a name with two slashes is a relative path, unless
it begins with a host's name."""


def public_name(name: str, kind: str) -> str | None:
    """Return the name by which others know an engine's model; None if it has none.

    ``kind`` is the engine's.  A name that is no place is returned unchanged.
    """
    url = _URL.match(name)
    if url is not None:
        place = unquote(re.split(r"[?#]", name[url.end() :])[0])
    elif _is_place(name, kind):
        place = name
    else:
        return name if is_name(name) else None
    path = _DRIVE.sub("", place.replace("\\", "/")).rstrip("/")
    hub = _HUB.search(path)
    own = path.rpartition("/")[2]
    is_file = own.lower().endswith(_FILES)
    if own.lower().endswith(".gguf"):
        own = own[: -len(".gguf")]
    elif hub is not None:
        own = hub[1].replace("--", "/", 1)
    elif is_file and "/" in path and own.lower() in _COMMON_FILES:
        own = path.split("/")[-2]  # the folder is what the model is called
    usable = is_name(own) and not own.startswith(("~", "$", "%", ".")) and own.strip(" .")
    return own if usable else None


_COMMON_FILES = frozenset({"model.safetensors", "pytorch_model.bin", "model.onnx"})


def is_name(text: str) -> bool:
    """Return whether the text can be a model's name in a report."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def is_place(text: str) -> bool:
    """Return whether an engine's name for a model can be used to ask for it."""
    return 0 < len(text) <= MAX_PLACE and text.isprintable()


def _is_place(name: str, kind: str) -> bool:
    return (
        name.startswith(_PLACES)
        or "\\" in name
        or _DRIVE.match(name) is not None
        or name.lower().endswith(_FILES)
        or _HUB.search(name) is not None
        or (kind in _ASK_BY_PATH and name.count("/") > 1 and "." not in name.partition("/")[0])
    )
