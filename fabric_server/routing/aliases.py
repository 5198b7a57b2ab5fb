"""Public names of models that stand for several real ones, in order of preference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import msgspec

Aliases = Mapping[str, tuple[str, ...]]
WILDCARD = "*"


def parse_aliases(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parse texts like ``public=real|other``.  Raises ``ValueError`` that names the wrong one."""
    aliases: dict[str, tuple[str, ...]] = {}
    for text in texts:
        public, equals, rest = text.partition("=")
        public = public.strip()
        names = tuple(name.strip() for name in rest.split("|"))
        if not equals or not public or not all(names):
            raise ValueError(f"'{text}' is not of the form PUBLIC=REAL or PUBLIC=REAL|OTHER")
        if public in aliases:
            raise ValueError(f"'{public}' is defined twice: join its models with |")
        aliases[public] = names
    for public, names in aliases.items():
        for name in names:
            if name in aliases:
                raise ValueError(f"'{public}' stands for '{name}', which is itself an alias")
    return aliases


def find_names(aliases: Aliases, model: str) -> tuple[str, ...] | None:
    """Return the real names that a name stands for; None if it is no alias.

    A wildcard such as ``gpt-*`` stands for the names that fit it: the longest one counts.
    """
    names = aliases.get(model)
    if names is not None:
        return names
    fitting = [one for one in aliases if WILDCARD in one and _pattern(one).fullmatch(model)]
    return aliases[max(fitting, key=len)] if fitting else None


@lru_cache(maxsize=256)
def _pattern(wildcard: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, wildcard.split(WILDCARD))), re.DOTALL)


def resolve(
    aliases: Aliases,
    model: str,
    *preferences: Callable[[str], bool],
) -> str:
    """Return the first real name that meets the first preference; else the next preference, and so
    on; else the first name.

    A name that is no alias is returned unchanged.
    """
    names = find_names(aliases, model)
    if names is None:
        return model
    for fits in preferences:
        for name in names:
            if fits(name):
                return name
    return names[0]


def other_spelling(model: str) -> str:
    """Add or remove ``:latest``: Ollama's clients treat both names as one."""
    return model.removesuffix(":latest") if model.endswith(":latest") else f"{model}:latest"


def rename(body: bytes, place: tuple[int, int], model: str, *, form: bool = False) -> bytes:
    """Return ``body``, or the beginning of one, with another name at the place of its model's."""
    start, stop = place
    view, name = memoryview(body), model.encode() if form else msgspec.json.encode(model)
    return b"".join((view[:start], name, view[stop:]))
