"""``fabric-client status``: the node of this machine, its connection, work and engines."""

from __future__ import annotations

import time
from typing import Any

from msgspec import structs

from fabric_client.cli import TOKEN, Json, start_command
from fabric_client.config import PREFIX, Config
from fabric_client.findings import engines, not_linked
from fabric_client.identity import Identity, NotJoined
from fabric_client.owner import state
from fabric_client.owner.process_lock import is_running
from fabric_client.owner.state import State
from protocol.messages import EngineReport
from runtime.findings import Finding, problems
from runtime.flags import takes_settings
from runtime.output import REFUSED, duration, say, say_json, say_table


@takes_settings(Config, PREFIX, only=("data",), not_settings=(TOKEN,))
def status(settings: Config, json: Json = False) -> int:
    """Show the node's connection, work and engines.

    Exit code 0 if the node is linked to its server, 3 if not.
    """
    running = is_running(settings.data)
    try:
        identity = Identity.load(settings.data)
    except NotJoined as error:
        identity, problem = None, str(error)
    else:
        problem = "" if running else f"not running: start it with '{start_command(settings.data)}'"
    now = state.read(settings.data) if running else None
    problem = problem or ("starting" if now is None else "")
    if json:
        say_json(_described(identity, running, now, problem))
    else:
        _show(identity, now, problem)
    return 0 if now is not None and now.linked else REFUSED


def _described(
    identity: Identity | None, running: bool, now: State | None, problem: str
) -> dict[str, Any]:
    """Return what ``--json`` prints; times are in Unix seconds."""
    return {
        "joined": identity is not None,
        "running": running,
        "linked": now is not None and now.linked,
        "reason": now.reason if now is not None else problem,
        "since": None if now is None else now.since,
        "node_id": None if identity is None else identity.node_id,
        "name": None if now is None else now.name,
        "server": None if identity is None else f"{identity.host}:{identity.control_port}",
        "certificate_ends": None if identity is None else identity.ends,
        "pid": None if now is None else now.pid,
        "paused": now.paused or None if now is not None else None,
        "draining": now is not None and now.draining,
        "tunnels": 0 if now is None else now.tunnels,
        "active": 0 if now is None else now.active,
        "served": 0 if now is None else now.served,
        "tokens": 0 if now is None else now.tokens,
        "tokens_per_second": 0.0 if now is None else now.tokens_per_second,
        "offers": None if now is None else now.offers,
        "findings": [] if now is None else [structs.asdict(one) for one in _findings(now)],
        "engines": [] if now is None else [_engine(report, now) for report in now.engines],
    }


def _findings(now: State) -> list[Finding]:
    """Return the problems of the node and of its engines, in the words of ``doctor``."""
    link = [] if now.linked else [not_linked(now.reason)]
    return problems([*link, *now.findings, *engines(now.engines, now.offers)])


def _engine(report: EngineReport, now: State) -> dict[str, Any]:
    return {
        "name": report.name,
        "kind": report.kind,
        "healthy": report.healthy,
        "problem": report.problem,
        "slots": report.slots,
        "models": [
            {field: getattr(model, field) for field in model.__struct_fields__}
            for model in report.models
        ],
        "held_back": [
            {"name": one.name, "reason": one.reason} for one in now.held_back.get(report.name, ())
        ],
    }


def _show(identity: Identity | None, now: State | None, problem: str) -> None:
    if identity is not None:
        name = "" if now is None else f", “{now.name}”"
        say(f"Node    {identity.node_id}{name}")
        say(f"Server  {identity.host}:{identity.control_port}")
    if now is None:
        say(f"State   {problem}")
        return
    since = duration(time.time() - now.since)
    if now.linked:
        say(f"State   linked for {since}, {now.tunnels} tunnels")
    else:
        say(f"State   not linked for {since}: {now.reason}")
    if now.draining:
        say("Drain   finishing running requests, then stopping")
    elif now.paused:
        say(f"Paused  {now.paused}")
    speed = f", {now.tokens_per_second:.1f} tokens/s" if now.tokens_per_second else ""
    say(f"Work    {now.active} running, {now.served} served since the start{speed}")
    for finding in now.findings:
        say(f"Problem {finding}")
    say()
    if not now.engines:
        say("No engine found: start Ollama, vLLM, llama-server or LM Studio, or set --engine.")
        return
    _show_offer(now)
    say_table(
        ("engine", "state", "slots", "models"),
        [
            (
                report.name,
                "healthy" if report.healthy else report.problem or "down",
                str(report.slots),
                ", ".join(model.name for model in report.models) or "none offered",
            )
            for report in now.engines
        ],
    )
    held_back = [(name, one) for name, models in now.held_back.items() for one in models]
    if held_back:
        say("")
        say_table(
            ("engine", "held back", "why"),
            [(name, one.name, one.reason) for name, one in held_back],
        )


def _show_offer(now: State) -> None:
    if now.offers is None:
        return
    say(f"Offers  {', '.join(now.offers) or 'nothing: the setting models is an empty list'}")
    if now.offers and not any(report.models for report in now.engines):
        say("        nothing: no model of the engines matches; change the setting models")
    say("")
