"""``make install-test``: docs/install.md word for word in new installations of Debian 12 and 13.

Each root is made by debootstrap, kept in .cache/roots, and copied for each run.  The commands of
the sections about Debian run there in their order, then a server, a node and its echo engine, up
to the first answer.  Needs root, debootstrap, and Debian's packages and PyPI; the network of the
programs is one of their own, with nothing but loopback.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.version import VERSION
from tests.code_blocks import ROOT, blocks

ROOTS = ROOT / ".cache" / "roots"
SUITES = {"12": "bookworm", "13": "trixie"}
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
ENVIRON = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    # pip's own list of authorities is not that of the system, which may have one of a proxy.
    "PIP_CERT": f"/{CERTIFICATES}",
    "SSL_CERT_FILE": f"/{CERTIFICATES}",
    "REQUESTS_CA_BUNDLE": f"/{CERTIFICATES}",
}

FIRST_ANSWER = """
set -eu
export PATH=$PATH:/root/.local/bin
python=$(sed -n '1s/^#!//p' "$(readlink -f /root/.local/bin/fabric-client)")
/usr/local/bin/fabric-server up --address localhost > /root/ready 2> /root/server.log &
for _ in $(seq 100); do [ -s /root/ready ] && break; sleep 0.1; done
fabric-server keys create alice --json > /root/key
token=$(fabric-server nodes invite --name attic --json | grep -o 'fjt1_[A-Za-z0-9_-]*' | head -1)
"$python" -m fabric_client.engines.echo --port 8090 > /root/echo.log 2>&1 &
fabric-client join "$token"
fabric-client run --engine http://127.0.0.1:8090 2> /root/node.log &
token=$(fabric-server nodes invite --name file --json | grep -o 'fjt1_[A-Za-z0-9_-]*' | head -1)
python3 fabric-client.pyz join "$token" --data /root/one-file
engine=http://127.0.0.1:8090
python3 fabric-client.pyz run --data /root/one-file --engine "$engine" 2> /root/file.log &
for _ in $(seq 100); do grep -q registered /root/file.log && break; sleep 0.1; done
grep registered /root/file.log
exec python3 - <<'END'
import json, re, ssl, time, urllib.error, urllib.request
key = re.search(r"sk-fab-[\\w-]+", open("/root/key").read())[0]
trust = ssl.create_default_context(cafile="/root/.fabric/server/certs/ca.pem")
body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
for _ in range(60):
    request = urllib.request.Request("https://localhost:18080/v1/chat/completions",
                                     json.dumps(body).encode(), headers)
    try:
        print(json.load(urllib.request.urlopen(request, context=trust))["choices"][0]["message"])
        break
    except urllib.error.HTTPError as error:
        last = error.read().decode()
        time.sleep(0.5)
else:
    raise SystemExit("no answer: " + last)
END
"""


def base(number: str) -> Path:
    """Return a new installation of Debian, made once."""
    root = ROOTS / SUITES[number]
    if not (root / ".complete").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates"]
        _run([*command, SUITES[number], str(root)])
        (root / ".complete").touch()
    return root


def install(number: str) -> None:
    """Run the document's commands in a copy of that installation, up to an answer."""
    root = ROOTS / f"{SUITES[number]}-run"
    shutil.rmtree(root, ignore_errors=True)
    _run(["cp", "--archive", "--reflink=auto", str(base(number)), str(root)])
    # Stand-ins for what a machine has: names, authorities, a "yes" to apt, processes and devices.
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    if Path("/", CERTIFICATES).exists():
        shutil.copy(Path("/", CERTIFICATES), root / CERTIFICATES)
    (root / "etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "true";\n')
    files = root / "root" / "files"
    shutil.copytree(ROOT / "dist", files)
    inside(root, "apt-get update")
    for block in blocks("docs/install.md", "Debian 12 and 13"):
        text = block.text.replace("X.Y.Z", VERSION)
        print(f"── Debian {number} ──\n{text}", end="", flush=True)
        inside(root, text)
    inside(root, FIRST_ANSWER, network=False)
    print(f"Debian {number}: installed and answered")
    shutil.rmtree(root)


def inside(root: Path, script: str, *, network: bool = True) -> None:
    """Run a script in a root, with processes of its own, and without a network if so said."""
    namespaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
    loopback = "" if network else "ip link set lo up && "
    mounts = 'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && '
    shell = f'{mounts}{loopback}exec chroot "$1" /bin/bash -euc "$2"'
    command = ["unshare", *namespaces, "sh", "-c", shell, "sh", str(root)]
    _run([*command, f"cd /root/files\n{script}"], env=ENVIRON)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.install", description=__doc__)
    parser.add_argument("--debian", action="append", choices=list(SUITES), help="only this one")
    options = parser.parse_args(words)
    lacking = [tool for tool in ("debootstrap", "unshare", "ip") if shutil.which(tool) is None]
    if lacking or os.geteuid() != 0:
        print("install-test needs root, and apt install debootstrap util-linux iproute2; missing: "
              f"{', '.join(lacking) or 'root'}", file=sys.stderr)  # fmt: skip
        return 2
    for number in options.debian or SUITES:
        install(number)
    return 0


def _run(command: Sequence[str], env: dict[str, str] | None = None) -> None:
    code = subprocess.run(command, env=env, timeout=1200).returncode
    if code:
        raise SystemExit(f"install-test: a command above failed ({code})")


if __name__ == "__main__":
    sys.exit(main())
