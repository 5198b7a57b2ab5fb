"""Weights of nodes and regions, set by the operator: factors on the speed that routing expects."""

from __future__ import annotations

import math
from collections.abc import Iterable

from protocol.regions import is_region

REGION = "region:"
"""Prefix of a region's name."""


def parse_weights(texts: Iterable[str]) -> dict[str, float]:
    """Parse texts like ``node=2`` or ``region:eu-west=2``.

    Raises ``ValueError`` that names the wrong one.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, _, factor = text.rpartition("=")
        try:
            weight = float(factor)
        except ValueError:
            weight = 0.0
        if not name.strip() or not 0.0 < weight < math.inf:
            raise ValueError(f"'{text}' is not of the form node=2, with a number above 0")
        name = name.strip()
        if name.startswith(REGION) and not is_region(name.removeprefix(REGION)):
            raise ValueError(f"'{text}' names no region, such as region:eu-west=2")
        weights[name] = weight
    return weights
