"""The retention that the settings demand."""

from __future__ import annotations

from fabric_server.config import Config
from fabric_server.storage.retention import Policy


def policy_of(config: Config) -> Policy:
    """Return how long things are kept.

    A node stays until its certificate has ended, too: it may come back until then.
    """
    node_days = max(config.keep_nodes_days, config.node_certificate_days + 1)
    return Policy(
        ledger_months=config.keep_ledger_months,
        archive=config.ledger_archive,
        hourly_months=config.keep_hourly_months,
        daily_months=config.keep_daily_months,
        monthly_months=config.keep_monthly_months,
        node_days=node_days if config.keep_nodes_days else 0.0,
        ended_days=config.keep_ended_days,
    )
