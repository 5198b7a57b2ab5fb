"""How much the operator prefers a node: a factor on its speed, as routing expects it."""

from __future__ import annotations

import math
from collections.abc import Iterable


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """Of ``node=2`` each; raises ValueError that says what is wrong with which."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            weight = float(factor)
        except ValueError:
            weight = 0.0
        if not name.strip() or not 0.0 < weight < math.inf:
            raise ValueError(f"'{text}' is not of the form node=2, with a number above 0")
        weights[name.strip()] = weight
    return weights
