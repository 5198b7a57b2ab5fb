"""Settings that change while the server runs: what was asked for, what it took, what it can't.

A settings file that is wrong is refused whole.  What runs keeps what it began with, and so do
connections and registrations that exist; what comes next has the new values.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fabric_server.routing.aliases import parse_aliases
from fabric_server.routing.weights import parse_weights
from runtime import logs
from runtime.settings import SettingsError

if TYPE_CHECKING:
    from fabric_server.app import App
    from fabric_server.config import Config

log = logging.getLogger("fabric.server")

AT_ONCE = frozenset(
    {
        *("body_limit", "headers_limit", "headers_count", "header_timeout", "body_rate"),
        *("keepalive_timeout", "first_byte_timeout", "stall_timeout", "idle_timeout"),
        "hedge",
        *("slow_reader_timeout", "stream_limit"),
        *("queue_length", "queue_length_per_key", "queue_timeout", "aliases", "weights"),
        *("tunnels", "tunnels_most", "heartbeat_seconds", "node_certificate_days"),
        *("drain_seconds", "log_level", "log_json"),
    }
)
"""Settings that need no restart."""


def reload(app: App, read_again: Callable[[Config], Config]) -> dict[str, Any]:
    """Load settings and certificates again; never raises for what is wrong with them.

    Returns ``applied`` and ``needs_restart``, names of settings that have changed, whether the
    ``certificates`` could be loaded, and in ``error`` why no setting was taken, or None.
    """
    result: dict[str, Any] = {"applied": [], "needs_restart": [], "error": None}
    try:
        asked = read_again(app.config)
    except SettingsError as error:
        log.error("settings not replaced", extra={"reason": str(error)})
        result["error"] = str(error)
    else:
        changed = [
            field.name
            for field in dataclasses.fields(asked)
            if getattr(asked, field.name) != getattr(app.config, field.name)
        ]
        result["applied"] = [name for name in changed if name in AT_ONCE]
        result["needs_restart"] = [name for name in changed if name not in AT_ONCE]
        _take(app, asked, result["applied"])
        log.info(
            "settings loaded",
            extra={"applied": result["applied"], "needs_restart": result["needs_restart"]},
        )
    result["certificates"] = app.contexts.reload(time.time())
    return result


def _take(app: App, asked: Config, names: list[str]) -> None:
    # Not a new object of what was asked: what needs a restart must still be told next time.
    config = dataclasses.replace(app.config, **{name: getattr(asked, name) for name in names})
    for hidden in ("_sources", "_again"):
        if hasattr(asked, hidden):
            object.__setattr__(config, hidden, getattr(asked, hidden))
    app.config = config
    app.edge.limits = app.limits()
    app.gateway.timeouts = app.timeouts()
    app.gateway.hedging.on = config.hedge == "p95"
    aliases = parse_aliases(config.aliases)
    app.gateway.aliases = app.catalogue.aliases = app.jobs.aliases = aliases
    app.admission.set_limits(
        queue_length=config.queue_length,
        queue_length_per_key=config.queue_length_per_key,
        queue_timeout=config.queue_timeout,
    )
    app.admission.router.knowledge.weights = parse_weights(config.weights)
    app.links.tunnels = config.tunnels
    app.links.tunnels_most = config.tunnels_most
    app.links.heartbeat_seconds = config.heartbeat_seconds
    app.enrolment.lifetime = app.certificate_seconds()
    if {"log_level", "log_json"} & set(names):
        logs.configure(config.log_level, json=config.log_json)
