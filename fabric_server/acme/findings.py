"""The finding on a certificate that was due and was not issued."""

from __future__ import annotations

from cryptography import x509

from fabric_server.acme.state import State
from runtime.findings import DAY, Finding

CHECK = "certificate for users"
CODE = "acme_failed"


def judge(state: State, certificate: x509.Certificate | None, now: float) -> Finding | None:
    """Return the problem; None after a success, and before the first try."""
    if not state.failures:
        return None
    left = 0.0
    if certificate is not None:
        left = certificate.not_valid_after_utc.timestamp() - now
    stays = "users see the fabric's own certificate"
    if certificate is not None:
        stays = f"the old one is good for {left / DAY:.1f} more days" if left > 0 else "it is over"
    minutes = max(0.0, state.next_try - now) / 60
    tries = "1 try" if state.failures == 1 else f"{state.failures} tries"
    what = f"no certificate was issued in {tries}: {state.reason.rstrip('.')}; {stays}"
    remedy = state.remedy or "see the log"
    remedy += f"; it is tried again in {minutes:.0f} min, or by 'fabric-server reload'"
    return Finding(CHECK, "warn" if left > 0 else "FAIL", what, CODE, remedy)
