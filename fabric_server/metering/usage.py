"""Tokens of an answer: what its engine has told, and what was made of it.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
"""A number of tokens as a node reports it, however large: ``plausible`` bounds it."""


class Usage(Struct, gc=False):
    """Tokens as the engine counts them; None where it reports none."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class EstimatedUsage(Usage, gc=False):
    """Usage of which the engine has told a part or nothing."""

    bounded: bool = False
    """Whether what the engine has told exceeded its bounds."""


class BoundedUsage(Usage, gc=False):
    """Usage that exceeded its bounds, and was reduced to them."""
