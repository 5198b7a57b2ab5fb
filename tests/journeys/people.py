"""Who walks through the documents: each with a home, a shell and a place in the network.

The operator is at the server, which has the documents' name ``gpu.example.org``; the owner of a
node and the user are at home, behind NAT.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tests.code_blocks import ROOT, Block
from tests.lab.netlab import NatLab, in_namespace
from tests.programs import Program

NAMES = "gpu.example.org new.example.org old.example.org"
STAYS = re.compile(r"^fabric-server up|^fabric-client run|--follow")
"""Commands that run until they are ended."""
READY = {"fabric-server up": '"ports"', "fabric-client run": "registered"}
"""What they print when they are ready."""
LEARNT = {
    "fjt1_…": r"fjt1_[\w-]{20,}",
    "sk-fab-…": r"sk-fab-[\w-]{20,}",
    "node_…": r"node_\w+",
    "key_…": r"key_\w+",
    "req_…": r"x-request-id: (req_\w+)",
    "FILE": r"\S+/fabric-backup-\w+\.tar(?:\.age)?",
}
"""What the documents leave out, and how it looks where a command prints it."""


class Person:
    """Runs commands at a place; ``known`` has what the commands of all have printed."""

    def __init__(self, lab: NatLab, namespace: str, home: Path, known: dict[str, str]) -> None:
        self.home = home
        self.known = known
        self.programs: dict[str, Program] = {}
        home.mkdir()
        hosts = home / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{lab.server_address} {NAMES}\n")
        mount = ["sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
        self._place = in_namespace(namespace, mount)
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("FABRIC_")}
        for name in ("XDG_CONFIG_HOME", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy"):
            self.environ.pop(name, None)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environ |= {"HOME": str(home), "PATH": path, "COLUMNS": "200"}

    def do(self, block: Block, stand_ins: Mapping[str, str], typed: str = "") -> str:
        """Run a block as its language says, and return what was printed."""
        text = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)
        if block.language == "python":
            return self.run(f"python - <<'END'\nimport os\n{self._filled(text, stand_ins)}END")
        if block.language == "sh" or text.startswith("export "):
            return self.run(self._filled(text, stand_ins))
        said = ""
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            line = self._filled(line, stand_ins)  # with what the line before has printed
            said += self.start(line) if STAYS.search(line) else self.run(line, typed)
        return said

    def run(self, script: str, typed: str = "", *, code: int | None = 0) -> str:
        """Run a script to its end; ``typed`` is entered on a terminal as often as it is asked."""
        if typed:
            words = [sys.executable, str(Path(__file__).with_name("terminal.py")), typed]
        else:
            words = []
        command = [*self._place, *words, "bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environ,
            cwd=self.home,
            timeout=60,
        )
        assert code is None or done.returncode == code, f"{script}\n{done.stdout}"
        return self._learn(done.stdout)

    def start(self, line: str, *, until: str | None = None) -> str:
        """Start a program that goes on, and return what it has printed once it is ready.

        One of the same name that runs is left to end by itself if this one takes over, and else
        ended first.
        """
        name = next(
            word for word in ("fabric-server up", "fabric-client run", line) if word in line
        )
        before = self.programs.pop(name, None)
        if before is not None and "--takeover" not in line:
            before.stop()
        popen = partial(subprocess.Popen, env=self.environ, cwd=self.home)
        program = Program([*self._place, "bash", "-euc", line], popen)
        self.programs[name] = program
        program.line_with(until or READY.get(name, ""))
        if before is not None and "--takeover" in line:
            assert before.process.wait(60) == 0, before.lines
            before.stop()
        return self._learn("\n".join(program.lines))

    def leave(self) -> None:
        for program in self.programs.values():
            program.stop()

    def _filled(self, text: str, stand_ins: Mapping[str, str]) -> str:
        for left_out, value in {**self.known, **stand_ins}.items():
            text = text.replace(left_out, value)
        return text

    def _learn(self, said: str) -> str:
        for name, looks in LEARNT.items():
            if found := re.findall(looks, said):
                self.known[name] = found[-1]
        return said


class Town:
    """The lab, and the people in it."""

    def __init__(self, lab: NatLab, directory: Path) -> None:
        known: dict[str, str] = {}
        self.operator = Person(lab, lab.server, directory / "operator", known)
        self.second_operator = Person(lab, lab.server, directory / "second-operator", known)
        self.owner = Person(lab, lab.node, directory / "owner", known)
        # The machine of the tests may be on battery.
        self.owner.environ["FABRIC_NODE_PAUSE_ON_BATTERY"] = "false"
        self.second_owner = Person(lab, lab.node, directory / "second-owner", known)
        self.user = Person(lab, lab.node, directory / "user", known)
        self.people = [value for value in vars(self).values() if isinstance(value, Person)]

    def settle(self) -> None:
        """Give the user what docs/clients.md says that one needs: address, key and CA."""
        ca = self.user.home / "ca.pem"
        ca.write_bytes((self.operator.home / ".fabric/server/certs/ca.pem").read_bytes())
        self.user.environ |= {
            "FABRIC_URL": "https://gpu.example.org:18080",
            "FABRIC_KEY": self.operator.known["sk-fab-…"],
            "FABRIC_MODEL": "echo",
            "SSL_CERT_FILE": str(ca),
            "CURL_CA_BUNDLE": str(ca),
            "FABRIC_CA": str(ca),
            "PYTHONPATH": str(ROOT),
        }

    def leave(self) -> None:
        for person in reversed(self.people):
            person.leave()
