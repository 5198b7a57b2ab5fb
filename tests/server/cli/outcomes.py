"""What an operator sees of a command that fails, and of a server that runs."""

from __future__ import annotations

import re
import ssl
import urllib.error
import urllib.request

from tests.commands import PATIENCE, Shell


def refused(shell: Shell, *words: str, stdin: str = "", **environ: str) -> str:
    """The one sentence with which a command that can't be done ends."""
    done = shell.call("fabric-server", *words, stdin=stdin, environ=environ)
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert re.fullmatch(r"fabric-server: [^\n]+\.\n|fabric-server: [^\n]+\n", done.stderr)
    return done.stderr.removeprefix("fabric-server: ").strip()


def status_of(url: str, key: str = "", context: ssl.SSLContext | None = None) -> int:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
