"""Settings and certificates that are loaded again while the server runs.

A settings file with an error changes nothing.  Running requests keep their old values, and so do
existing connections and registrations; whatever begins later gets the new ones.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from fabric_server.app import App
from fabric_server.config import Config
from runtime import logs
from runtime.flags import merge
from runtime.settings import SettingsError

log = logging.getLogger("fabric.server")

RELOADABLE = frozenset(
    {
        *("body_limit", "headers_limit", "headers_count", "header_timeout", "body_rate"),
        *("keepalive_timeout", "first_byte_timeout", "stall_timeout", "idle_timeout"),
        *("hedge", "cors_origins", "media", "bodies_limit", "bodies_limit_per_key"),
        *("slow_reader_timeout", "stream_limit"),
        *("queue_length", "queue_length_per_key", "queue_timeout", "aliases", "weights"),
        *("tunnels", "tunnels_most", "heartbeat_seconds", "node_certificate_days"),
        *("drain_seconds", "log_level", "log_json"),
    }
)
"""Settings that take effect without a restart."""


def reload(app: App, read_again: Callable[[Config], Config]) -> dict[str, Any]:
    """Load settings and certificates again; errors in them are logged and returned, not raised.

    Returns the names of the changed settings in ``applied`` and ``needs_restart``, in
    ``certificates`` whether they could be loaded, and in ``error`` why no setting was changed, or
    None.
    """
    result: dict[str, Any] = {"applied": [], "needs_restart": [], "error": None}
    try:
        loaded = read_again(app.config)
    except SettingsError as error:
        log.error("settings not replaced", extra={"reason": str(error)})
        result["error"] = str(error)
    else:
        changed = [
            field.name
            for field in dataclasses.fields(loaded)
            if getattr(loaded, field.name) != getattr(app.config, field.name)
        ]
        result["applied"] = [name for name in changed if name in RELOADABLE]
        result["needs_restart"] = [name for name in changed if name not in RELOADABLE]
        _apply(app, loaded, result["applied"])
        log.info(
            "settings loaded",
            extra={"applied": result["applied"], "needs_restart": result["needs_restart"]},
        )
    result["certificates"] = app.tls.reload(time.time())
    if app.acme is not None:
        app.acme.hurry()
    return result


def _apply(app: App, loaded: Config, names: list[str]) -> None:
    # Settings that need a restart keep their old values, to be reported again at the next reload.
    config = app.config = merge(app.config, loaded, names)
    app.data_plane.configure(config)
    app.control_plane.configure(config)
    if {"log_level", "log_json"} & set(names):
        logs.configure(config.log_level, json=config.log_json)
