# ruff: noqa: T201 - `docker inspect` shows the output
"""The health check of the server's and consumer's images: exit code 0 if /health/ready returns 200.

    python health.py VARIABLE PORT

The port is the value of the environment variable, or else PORT.  The request is plain HTTP, which
the programs accept on loopback.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException

variable, port = sys.argv[1:]
connection = HTTPConnection("127.0.0.1", int(os.environ.get(variable) or port), timeout=4)
try:
    connection.request("GET", "/health/ready")
    response = connection.getresponse()
    print(response.status, response.read(1000).decode(errors="replace"))
except (OSError, HTTPException) as error:
    sys.exit(f"no response: {error}")
sys.exit(response.status != 200)
