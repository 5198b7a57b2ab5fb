"""The beginning of ``fabric-client.pyz``: unpacks what this Python needs, once, and runs the node.

Only the standard library is here, and syntax that older Pythons can read, so that they are told.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile


def main():
    archive = os.path.abspath(sys.argv[0])
    with zipfile.ZipFile(archive) as files:
        manifest = json.loads(files.read("manifest.json").decode("utf-8"))
        target = f"{sys.version_info[0]}.{sys.version_info[1]} {machine()}"
        if target not in manifest["targets"]:
            held = ", ".join(sorted(manifest["targets"]))
            sys.stderr.write(
                f"fabric-client: this file has nothing for Python {target}: it holds the packages "
                f"for Python {held}. Run it with one of these, or build one with "
                "'make node-pex PLATFORMS=…'.\n"
            )
            sys.exit(2)
        home = os.path.join(cache(), manifest["sha256"][:16] + "-" + target.replace(" ", "-"))
        if not os.path.isdir(home):
            unpack(files, manifest["targets"][target], home)
    sys.path.insert(0, home)
    os.environ.setdefault("PEX", archive)  # as a PEX says it: what a service is to start
    from fabric_client.__main__ import main as run

    run()


def machine():
    """Return the name that uv has for this platform."""
    kind = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if sys.platform == "linux":
        libc = "gnu" if platform.libc_ver()[0] == "glibc" else "musl"
        return f"{kind}-unknown-linux-{libc}"
    names = {"darwin": "apple-darwin", "win32": "pc-windows-msvc"}
    return f"{kind}-{names.get(sys.platform, sys.platform)}"


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(base, "fabric-client")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def unpack(files, wanted, home):
    """Write the files beside ``home`` and rename their directory: it is whole or not there."""
    made = tempfile.mkdtemp(dir=os.path.dirname(home))
    try:
        for name, blob in wanted.items():
            path = os.path.join(made, *name.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(files.read("blobs/" + blob))
        try:
            os.rename(made, home)
        except OSError:
            if not os.path.isdir(home):  # else another start was faster
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
