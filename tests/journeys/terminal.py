"""Run a command on a terminal of its own: ``python terminal.py ANSWER COMMAND…``.

Each prompt for a passphrase gets the answer.  What the terminal shows goes to standard output.
"""

from __future__ import annotations

import os
import subprocess
import sys

answer, *command = sys.argv[1:]
ours, theirs = os.openpty()
process = subprocess.Popen(
    ["setsid", "--ctty", "--wait", *command], stdin=theirs, stdout=theirs, stderr=theirs
)
os.close(theirs)
shown, asked = b"", 0
while True:
    try:
        more = os.read(ours, 4096)
    except OSError:  # the last program on the terminal has ended
        break
    shown += more
    # With the space: it comes when the echo is off, and what was typed before is thrown away.
    prompts = shown.count(b"Passphrase: ") + shown.count(b"confirmation: ")
    if prompts > asked:
        asked = prompts
        os.write(ours, answer.encode() + b"\n")
sys.stdout.write(shown.decode(errors="replace").replace("\r\n", "\n"))
sys.exit(process.wait())
