"""``make node-pex``: the node as one file, ``dist/fabric-client.pyz``, for several Pythons at once.

For each platform and Python, uv unpacks the pinned packages, with every hash compared, and the
wheel; the archive holds every distinct file once.  What runs it is node_main.py.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-unknown-linux-gnu",)
"""As uv calls them: aarch64-unknown-linux-gnu, aarch64-apple-darwin, x86_64-pc-windows-msvc, …"""
LEFT_OUT = ("bin/", ".lock")


def packages(work: Path, python: str, platform: str) -> dict[str, bytes]:
    """Return the files that a Python of this platform needs, by their names in site-packages."""
    target = work / f"{python}-{platform}"
    install = [UV, "pip", "install", "--quiet", "--target", target, "--only-binary", ":all:"]
    where = ["--python-version", python, "--python-platform", platform]
    lock = ["--require-hashes", "-r", ROOT / "requirements.lock"]
    subprocess.run([*install, *where, *lock], check=True)
    (wheel,) = DIST.glob("*.whl")
    subprocess.run([*install, *where, "--no-index", "--no-deps", wheel], check=True)
    found = {path.relative_to(target).as_posix(): path for path in target.rglob("*")}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if path.is_file() and not name.startswith(LEFT_OUT)
    }


def build(file: Path, platforms: tuple[str, ...]) -> None:
    """Write the archive for ``PYTHONS`` on these platforms."""
    targets: dict[str, dict[str, str]] = {}
    blobs: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as work:
        for platform in platforms:
            for python in PYTHONS:
                names = targets[f"{python} {platform}"] = {}
                for name, content in sorted(packages(Path(work), python, platform).items()):
                    names[name] = hashlib.sha256(content).hexdigest()
                    blobs[names[name]] = content
    write(file, targets, blobs)
    size = file.stat().st_size / 2**20
    print(f"{file.relative_to(ROOT)}: {size:.0f} MiB, for Python {', '.join(targets)}")


def write(file: Path, targets: dict[str, dict[str, str]], blobs: dict[str, bytes]) -> None:
    """Write an archive of ``blobs``; ``targets`` names those that each Python unpacks."""
    digest = hashlib.sha256(json.dumps(targets, sort_keys=True).encode()).hexdigest()
    with file.open("wb") as out:
        out.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            entries = {
                "__main__.py": Path(__file__).with_name("node_main.py").read_bytes(),
                "manifest.json": json.dumps({"sha256": digest, "targets": targets}).encode(),
                **{f"blobs/{name}": content for name, content in sorted(blobs.items())},
            }
            for name, content in entries.items():  # with no date: the same files, the same archive
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    file.chmod(0o755)


if __name__ == "__main__":
    build(DIST / "fabric-client.pyz", tuple(sys.argv[1:]) or PLATFORMS)
