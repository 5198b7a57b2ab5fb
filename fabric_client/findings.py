"""Findings of a node: of its engines and of its connection, for ``doctor``, ``status`` and log."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.messages import EngineReport
from runtime.findings import Finding, Level, ok


def engines(reports: Sequence[EngineReport], offers: Sequence[str] | None) -> list[Finding]:
    """Judge the engines; ``offers`` are the owner's patterns of models, None without any."""
    if not reports:
        return [
            Finding(
                "engine",
                "FAIL",
                "no engine was found",
                "no_engine",
                "start Ollama, vLLM, llama-server or LM Studio, or name one with --engine URL",
            )
        ]
    healthy = any(report.healthy for report in reports)
    found = [_engine(report, "warn" if healthy else "FAIL") for report in reports]
    if healthy and offers is not None and not any(report.models for report in reports):
        remedy = "change the setting models, or load a model that matches it"
        found.append(Finding("models", "FAIL", "no model is offered", "nothing_offered", remedy))
    return found


def _engine(report: EngineReport, down: Level) -> Finding:
    if not report.healthy:
        what = f"{report.name}: {(report.problem or 'it is down').rstrip('.')}"
        return Finding("engine", down, what, "engine_down", "start it, or correct --engine")
    if not report.models:
        return Finding(
            "engine",
            "warn",
            f"{report.name} offers no model",
            "no_models",
            "load one into it (for Ollama: ollama pull NAME), or see the setting models",
        )
    shown = ", ".join(model.name for model in report.models[:3])
    more = f" and {len(report.models) - 3} more" if len(report.models) > 3 else ""
    return ok("engine", f"{report.name}: {report.slots} slots, {shown}{more}")


def not_linked(reason: str) -> Finding:
    """Return the finding of a node that runs without a link."""
    what = f"not linked to the server: {reason}"
    return Finding("link", "FAIL", what, "not_linked", "'fabric-client doctor' checks each port")


def releases(own: str, server: str) -> Finding:
    """Compare the releases of node and server; the server's is empty while it is unknown."""
    if not server:
        return ok("version", f"this is {own}; the server's version is known once it is linked")
    if _series(own) == _series(server):
        return ok("version", f"this is {own}, the server is {server}")
    remedy = "upgrade the older one: both speak, but newer features need both"
    what = f"this is {own}, but the server is {server}"
    return Finding("version", "warn", what, "versions_differ", remedy)


def _series(release: str) -> list[str]:
    return release.split(".")[:2]
