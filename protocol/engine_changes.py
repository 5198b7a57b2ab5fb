"""Changes between two reports of a node's engines, in words for the logs of both sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from protocol.messages import EngineReport

MAX_MODELS = 20
"""Names of models in one line; the line says how many more there are."""


class _State(NamedTuple):
    healthy: bool
    problem: str
    models: frozenset[str]


class EngineChanges:
    """Compares each report with the one before."""

    def __init__(self, reports: Iterable[EngineReport] | None = None) -> None:
        """Start from ``reports``; without them, from the first that is compared."""
        self._before = None if reports is None else _states(reports)

    def compare(self, reports: Iterable[EngineReport]) -> list[tuple[str, dict[str, Any]]]:
        """Return a message for each change since the last report, with its fields."""
        before, after = self._before, _states(reports)
        self._before = after
        return [] if before is None or before == after else list(_changes(before, after))


def _states(reports: Iterable[EngineReport]) -> dict[str, _State]:
    return {
        one.name: _State(
            one.healthy, one.problem or "", frozenset(model.name for model in one.models)
        )
        for one in reports
    }


def _changes(
    before: dict[str, _State], after: dict[str, _State]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in before.keys() - after.keys():
        yield "engine is no longer there", {"engine": name}
    for name, now in after.items():
        was = before.get(name)
        if was is None:
            if now.healthy:
                yield "engine found", {"engine": name, "models": _some(now.models)}
            else:
                yield "engine found, out of use", {"engine": name, "reason": now.problem}
        elif now.healthy and not was.healthy:
            yield "engine in use again", {"engine": name, "models": _some(now.models)}
        elif not now.healthy and (was.healthy or now.problem != was.problem):
            yield "engine out of use", {"engine": name, "reason": now.problem or "it is down"}
        elif now.healthy and now.models != was.models:
            changed: dict[str, Any] = {"engine": name}
            if added := now.models - was.models:
                changed["added"] = _some(added)
            if removed := was.models - now.models:
                changed["removed"] = _some(removed)
            yield "models of an engine changed", changed


def _some(models: frozenset[str]) -> list[str]:
    names = sorted(models)
    more = len(names) - MAX_MODELS
    return names if more <= 0 else [*names[:MAX_MODELS], f"and {more} more"]
