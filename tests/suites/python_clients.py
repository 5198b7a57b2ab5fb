"""The tests that openai and anthropic for Python have themselves, out of their source archives.

They run in a virtual environment of their own in .cache/suites, with the versions and hashes of
``requirements.lock``.  In their ``conftest.py`` one line is changed: the API key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.suites.place import Place
from tests.suites.table import Outcome, Suite

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"
CACHE = HERE.parents[1] / ".cache" / "suites"
PACKAGES = {"openai-python": "openai", "anthropic-sdk-python": "anthropic"}
KEY_LINE = re.compile(r'^api_key = "[^"]*"$', re.MULTILINE)
OWN_KEY = 'api_key = os.environ["SUITE_KEY"]'
SECONDS = 900
"""That a suite may take."""


class Unavailable(Exception):
    """A suite can't be had or run on this machine; the message says what it lacks."""


def version(name: str) -> str:
    """Return the locked version of a suite's package."""
    return _locked(PACKAGES[name]).partition("==")[2].split()[0]


def run(suite: Suite, place: Place) -> dict[str, Outcome]:
    """Run the client's own tests against the place, and return how each case ended."""
    package = PACKAGES[suite.name]
    python = environment()
    source = sources(package)
    results = place.directory / f"{suite.name}.json"
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("FABRIC_", "OPENAI_"))},
        "PYTHONPATH": str(HERE / "plugins"),
        "SUITE_KEY": place.key,
        "SUITE_NOT_RUN": json.dumps(suite.not_run),
        "SUITE_CASES": str(results),
        "TEST_API_BASE_URL": place.url + ("/v1" if package == "openai" else ""),
    }
    words = ("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "suite_cases")
    command = [python, *words, "--tb=no", "tests/api_resources"]
    try:
        done = subprocess.run(
            command, cwd=source, env=environ, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{suite.name}: it took longer than {SECONDS} seconds") from None
    if not results.exists() or done.returncode not in (0, 1):
        raise Unavailable(
            f"{suite.name}: pytest ended with {done.returncode}:\n{done.stdout[-3000:]}"
        )
    return read(json.loads(results.read_text()))


def read(document: Mapping[str, Mapping[str, str]]) -> dict[str, Outcome]:
    """Return the outcomes that a suite has written."""
    return {name: Outcome(**outcome) for name, outcome in document.items()}


def environment() -> Path:
    """Return the Python of the suites' environment, made when the lock has changed."""
    home = CACHE / f"python-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:10]}"
    if not (home / ".complete").exists():
        _run(sys.executable, "-m", "venv", "--clear", str(home))
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(str(home / "bin" / "python"), *install, "--require-hashes", "-r", str(LOCK))
        (home / ".complete").touch()
    return home / "bin" / "python"


def sources(package: str) -> Path:
    """Return the folder with the package's tests, unpacked from its locked source archive."""
    home = CACHE / _locked(package).split()[0].replace("==", "-")
    if home.exists():
        return home
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        work = Path(directory)
        (work / "lock").write_text(_locked(package))
        download = ("-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        exact = ("--no-binary", package, "--require-hashes", "-r", str(work / "lock"))
        _run(sys.executable, *download, *exact, "--dest", str(work))
        with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        unpacked = next(path for path in work.iterdir() if path.is_dir())
        # The installed package is tested, not the one beside the tests.
        shutil.rmtree(unpacked / "src")
        conftest = unpacked / "tests" / "conftest.py"
        text, count = KEY_LINE.subn(OWN_KEY, conftest.read_text())
        if count != 1:
            raise Unavailable(f"{conftest.name} of {package} sets its API key in another way now")
        conftest.write_text(text)
        unpacked.rename(home)
    return home


def _locked(package: str) -> str:
    """Return the lock's entry of a package, with its hashes."""
    found = re.search(rf"^{package}==(?:.*\\\n)+.*\n", LOCK.read_text(), re.MULTILINE)
    if found is None:
        raise Unavailable(f"{package} is not in {LOCK.name}: make lock")
    return found[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}"
        raise Unavailable(f"the suites' own environment can't be made; {said}")
