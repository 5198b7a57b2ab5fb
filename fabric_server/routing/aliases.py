"""Public names of models that stand for several real ones, in order of preference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from fabric_server.dialects import errors
from fabric_server.dialects.forms import read_form
from fabric_server.dialects.json_keys import Scanner

Aliases = Mapping[str, tuple[str, ...]]


def parse_aliases(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of ``public=real|other`` each; raises ValueError that says what is wrong with which."""
    aliases: dict[str, tuple[str, ...]] = {}
    for text in texts:
        public, equals, rest = text.partition("=")
        public = public.strip()
        names = tuple(name.strip() for name in rest.split("|"))
        if not equals or not public or not all(names):
            raise ValueError(f"'{text}' is not of the form public=real or public=real|other")
        if public in aliases:
            raise ValueError(f"'{public}' is there twice: put its models into one, with |")
        aliases[public] = names
    for public, names in aliases.items():
        for name in names:
            if name in aliases:
                raise ValueError(f"'{public}' stands for '{name}', which is an alias itself")
    return aliases


def resolve(
    aliases: Aliases,
    model: str,
    has_room: Callable[[str], bool],
    is_served: Callable[[str], bool],
) -> str:
    """The first real name that could be answered at once; else the first that is served at all;
    else the first.  A name that is no alias is its own."""
    names = aliases.get(model)
    if names is None:
        return model
    for fits in (has_room, is_served):
        for name in names:
            if fits(name):
                return name
    return names[0]


def other_spelling(model: str) -> str:
    """To Ollama's clients a name without a tag and the same with ``:latest`` are one."""
    return model.removesuffix(":latest") if model.endswith(":latest") else f"{model}:latest"


def rename(body: bytes, model: str, form: bytes | None = None) -> bytes:
    """``body``, or the beginning of one, with the value of its ``model`` exchanged.

    ``form`` is the content type of one that is no JSON.  Raises Refusal when it can't be told where
    that stands.
    """
    if form is not None:
        start, stop = read_form(body, form, frozenset({"model"}))["model"]
        return body[:start] + model.encode() + body[stop:]
    scanner = Scanner(frozenset({b"model"}))
    scanner.feed(body)
    span = scanner.spans.get(b"model")
    if span is None:
        raise errors.bad_field("model", "'model' must be spelled plainly, and come early.")
    start, stop = span
    return body[:start] + msgspec.json.encode(model) + body[stop:]
