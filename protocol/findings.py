"""Findings that a server and its node both make, in the same words."""

from __future__ import annotations

from runtime.findings import Finding, ok

NO_TUNNELS_SECONDS = 20.0
"""A node that is linked for so long without a tunnel can't reach the proxy port."""
CLOCK_SECONDS = 30.0
"""Clocks that differ by less disturb nothing."""


def no_tunnels(port: int) -> Finding:
    """Return the finding of a node that is linked, but has no tunnels."""
    return Finding(
        "proxy port",
        "FAIL",
        f"linked, but no tunnel: the server's proxy port {port} can't be reached from the node",
        "no_tunnels",
        f"a firewall blocks it: allow TCP {port} to the server, in its own and its provider's "
        f"firewall and in the node's network",
    )


def clock(ahead: float, whose: str, other: str) -> Finding:
    """Judge one machine's clock, which is so many seconds ahead of another's (negative: behind)."""
    if abs(ahead) < CLOCK_SECONDS:
        return ok("clock", f"{whose} clock and {other} agree")
    direction = "ahead of" if ahead > 0 else "behind"
    return Finding(
        "clock",
        "FAIL" if abs(ahead) > 3600 else "warn",
        f"{whose} clock is {_span(abs(ahead))} {direction} {other}",
        "clock_differs",
        "set the one that is wrong, with a time service such as systemd-timesyncd or chrony",
    )


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
