# ruff: noqa: T201 - what it prints is shown by `docker inspect`
"""Exit code 0 when /health/ready says 200: the health check of the server's and consumer's images.

    python health.py VARIABLE PORT

The port is that of the environment variable, or else PORT.  It is asked over plain HTTP, which the
programs answer on loopback.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

variable, port = sys.argv[1:]
connection = HTTPConnection("127.0.0.1", int(os.environ.get(variable) or port), timeout=4)
try:
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
    print(answer.status, answer.read(1000).decode(errors="replace"))
except (OSError, HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(answer.status != 200)
