"""The openai package for Node.js, asked for everything that the fabric serves.

The package holds no tests, so the calls of ``openai_node.mjs`` are our own, with the parameters
that its types describe.  The package, its lock and its Node.js are those of ``tests/lab``.
"""

from __future__ import annotations

import json
import os
import subprocess

from tests.lab.backends import MissingProgram
from tests.lab.client_programs import LAB, node_js
from tests.suites.place import MODEL, SCRIPTED, Place
from tests.suites.python_clients import HERE, Unavailable
from tests.suites.table import Outcome

SECONDS = 300


def version() -> str:
    """Return the locked version of the package."""
    lock = json.loads((LAB / "node_clients" / "package-lock.json").read_text())
    found: str = lock["packages"]["node_modules/openai"]["version"]
    return found


def run(place: Place) -> dict[str, Outcome]:
    """Run the calls against the place, and return how each ended."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("FABRIC_", "OPENAI_"))},
        "SUITE_URL": place.url,
        "SUITE_KEY": place.key,
        "SUITE_LIMITED_KEY": place.limited_key,
        "SUITE_MODEL": MODEL,
        "SUITE_SCRIPTED": SCRIPTED,
    }
    try:
        command = node_js(place.directory, HERE / "openai_node.mjs")
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS)
    except MissingProgram as error:
        raise Unavailable(f"openai-node: {error}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"openai-node: it took longer than {SECONDS} seconds") from None
    if done.returncode:
        raise Unavailable(
            f"openai-node: Node.js ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    cases = map(json.loads, done.stdout.splitlines())
    return {case["case"]: Outcome(case["outcome"], case["why"]) for case in cases}
