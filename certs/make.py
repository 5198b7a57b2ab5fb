# ruff: noqa: T201 - it is for printing
"""Makes a CA and a server certificate, or renews what is due, as the server does on its start.

    python certs/make.py DIRECTORY [NAME …]

DIRECTORY becomes the server's ``<data>/certs``; each NAME is a host name or address under which
users and nodes reach the server.  What is there and good is kept.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from fabric_server.pki.certificates import CertificateProblem, Certificates


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    directory, *names = arguments
    try:
        certificates = Certificates.open(Path(directory), names, now=time.time())
        facts = certificates.facts()
    except CertificateProblem as problem:
        print(problem, file=sys.stderr)
        return 2
    for fact in facts:
        print(f"{fact.use}: {fact.path}")
        print(
            f"  {fact.subject}, {fact.key}, until {datetime.fromtimestamp(fact.ends, UTC):%Y-%m-%d}"
        )
        if fact.names:
            print(f"  names  {', '.join(fact.names)}")
        print(f"  sha256 {fact.sha256}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
