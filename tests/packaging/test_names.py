"""No document, script or image tells anybody to install the fabric by a bare name.

``fabric`` on PyPI is the SSH library, and a name that nobody has registered is anybody's to take.
So the fabric is installed by path: a checkout, or a wheel.
"""

from __future__ import annotations

import re

import pytest

from tests.packaging.checkout import ROOT, files

INSTALLS = re.compile(
    r"\b(?:pip[\d.]*|pipx|uv|uvx|poetry|pdm|conda)\b[^\n|;&]*?"
    r"\b(?:install|inject|run|upgrade|add|download|wheel|tool)\b(?P<words>[^\n|;&]*)|"
    r"\buvx\b(?P<run>[^\n|;&]*)"
)
BARE = re.compile(
    r"(?:inference[-_.])?fabric(?:[-_.](?:server|client|consumer))?(?:\[[^]]*\])?(?:[=<>~!@].*)?",
    re.IGNORECASE,
)
REQUIREMENT = re.compile(rf"^{BARE.pattern}\s*(?:[;#].*)?$", re.IGNORECASE)


def bare_names(text: str) -> list[str]:
    """Return the commands in ``text`` that install the fabric by its name alone."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for match in INSTALLS.finditer(line):
            words = re.split(r"[\s\"'`,()]+", match["words"] or match["run"] or "")
            if any(BARE.fullmatch(word.rstrip(".:")) for word in words):
                found.append(match[0].strip())
    return found


def test_nothing_is_installed_by_a_bare_name() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {command}"
        for file in files(".md", ".sh", ".py", ".toml", ".yaml", ".yml", "Dockerfile", "Makefile")
        if file.name != "test_names.py"
        for command in bare_names(file.read_text("utf-8"))
    ]
    assert not found


def test_no_list_of_requirements_names_the_fabric() -> None:
    for file in files(".in", ".lock", "requirements.txt"):
        for line in file.read_text("utf-8").splitlines():
            assert not REQUIREMENT.match(line), f"{file.relative_to(ROOT)}: {line}"


@pytest.mark.parametrize(
    "command",
    [
        "pip install fabric",
        "pip install --upgrade fabric",
        "/opt/fabric/bin/pip install 'inference-fabric[server]'",
        "python3 -m pip install inference_fabric==0.2.0",
        "pipx install inference-fabric",
        "uv tool install inference-fabric",
        "uv pip install aiohttp fabric",
        "uvx fabric-server",
        "RUN pip install --quiet \\\n    fabric",
    ],
)
def test_a_bare_name_is_found(command: str) -> None:
    assert bare_names(f"Do this: `{command}`.")


@pytest.mark.parametrize(
    "command",
    [
        "pip install .",
        "pip install ./inference_fabric-0.2.0-py3-none-any.whl",
        "pip install './inference_fabric-0.2.0-py3-none-any.whl[server]'",
        "pip uninstall --yes fabric",
        "pip install -r requirements.lock   # what the fabric needs".partition(" #")[0],
        "/opt/fabric/green/bin/pip install /tmp/fabric.whl",
        "install -d -o fabric -g fabric -m 700 /var/lib/fabric",
    ],
)
def test_a_path_is_no_bare_name(command: str) -> None:
    assert not bare_names(command)


def test_no_document_installs_into_the_systems_python() -> None:
    """Debian, Fedora and Homebrew refuse that: pip is that of an environment, with its path."""
    bare = re.compile(r"^\s+(?:sudo )?(?:pip3?|python3? -m pip) install\b", re.MULTILINE)
    found = [
        f"{file.relative_to(ROOT)}: {command.strip()}"
        for file in files(".md")
        for command in bare.findall(file.read_text("utf-8"))
    ]
    assert not found
