"""Variants of a model: different weights that nodes serve under one name.

Engines tell a digest, a quantisation, or neither.  A request may ask for one of them, and an answer
that was begun by one is never continued by another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from protocol.messages import ModelReport
from protocol.weights import MIN_DIGEST

MAX_SHOWN = 16
"""Variants of a model that are listed: each node may invent some."""


class Variant(Struct, frozen=True, order=True):
    """Weights of a model, as far as their engine tells; empty text is not known."""

    quantization: str = ""
    digest: str = ""

    def __str__(self) -> str:
        quantization = self.quantization or "unknown quantization"
        digest = f"digest {self.digest[:MIN_DIGEST]}" if self.digest else "unknown digest"
        return f"{quantization} ({digest})"


class WantedVariant(Struct, frozen=True):
    """The variant that a request asks for; empty text is any.  Both are in lower case."""

    quantization: str = ""
    digest: str = ""
    """The whole digest, or its beginning."""

    def __str__(self) -> str:
        names = (("quantization", self.quantization), ("digest", self.digest))
        return " and ".join(f"{name} {text}" for name, text in names if text)

    def matches(self, report: ModelReport) -> bool:
        """Return whether the engine tells that it has this variant."""
        if self.quantization and report.quantization.lower() != self.quantization:
            return False
        return report.digest.startswith(self.digest)


class BegunAnswer(Struct, frozen=True):
    """The engine that has begun an answer, for the choice of one that may continue it."""

    kind: str
    report: ModelReport
    """Its report of the model when it was chosen."""

    def may_continue(self, kind: str, report: ModelReport) -> bool:
        """Return whether another engine has the same weights, as far as can be told.

        A known digest is the same or it is not, and an unknown one is not the same as a known one.
        Where neither engine tells one, they must be of one kind and agree in all that both tell of
        the file; a quantisation that only one of them tells is a difference.
        """
        begun = self.report
        if begun.digest or report.digest:
            return begun.digest == report.digest
        return (
            kind == self.kind
            and begun.quantization.lower() == report.quantization.lower()
            and _agree(begun.size, report.size)
            and _agree(begun.parameter_size, report.parameter_size)
        )


def _agree(one: object, other: object) -> bool:
    return not one or not other or one == other


def variant_of(report: ModelReport) -> Variant:
    return Variant(report.quantization, report.digest)


def count_variants(reports: Iterable[ModelReport]) -> list[tuple[Variant, int]]:
    """Return the variants with the number of engines that have each, the most frequent first."""
    counts = Counter(map(variant_of, reports))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_SHOWN]


def describe_variants(reports: Iterable[ModelReport]) -> str:
    """Return the variants in words, for an error."""
    return ", ".join(str(variant) for variant, _ in count_variants(reports))
