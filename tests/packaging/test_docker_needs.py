"""``make docker-test`` says what it needs where it can't run, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.packaging.checkout import ROOT

TOOLS = ("sh", "dirname", "mktemp", "mkdir", "date", "rm", "id", "sed", "sort")


def test_without_docker_it_names_the_package_and_leaves_no_directory(tmp_path: Path) -> None:
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    process = subprocess.Popen(
        ["sh", "-x", str(ROOT / "docker/test.sh")],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2, said
    assert "apt install docker.io" in said
    (work,) = set(re.findall(r"^\+ work=(\S+)$", said, re.MULTILINE))
    assert not os.path.exists(work)


def test_each_tool_that_may_be_missing_is_to_be_installed() -> None:
    script = (ROOT / "docker/test.sh").read_text("utf-8")
    for tool, sentence in re.findall(r'command -v (\w+) > /dev/null \|\| cannot "([^"]+)"', script):
        assert "install" in sentence, f"{tool}: {sentence}"
