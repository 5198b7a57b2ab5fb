"""A wheel that is built with ``FABRIC_COMPILE=1``: what is in it, and what those without can do."""

from __future__ import annotations

import re
import sysconfig
import zipfile
from pathlib import Path

import pytest

from release.compiled import MODULES, NAME, SWITCH
from tests.packaging.checkout import ROOT, build_wheel
from tests.packaging.environment import Installed

FEW = ("runtime.version", "protocol.token_bucket", "protocol.tunnel.keepalive")
"""Compiling all of them takes minutes."""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
ABOUT = (
    "from runtime.version import COMPILED; import protocol.token_bucket as t; print(COMPILED, t)"
)


def test_a_compiled_wheel_has_sources_too_and_runs_without_what_was_compiled(
    tmp_path: Path,
) -> None:
    assert set(FEW) <= set(MODULES)
    wheel = build_wheel(tmp_path / "built", compiled=FEW)
    assert re.fullmatch(r"inference_fabric-.*-cp3\d+-cp3\d+-(linux|macosx)_.*\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    binary = {name for name in names if name.endswith(SUFFIX)}
    modules = {name.replace(".", "/") for name in FEW}
    assert binary == {f"{name}{SUFFIX}" for name in (f"{NAME}__mypyc", *modules)}
    assert {f"{name}.py" for name in modules} <= names

    installed = Installed(tmp_path / "home", "requirements-server.lock", wheel)
    assert "True" in installed.call("python", "-c", ABOUT).stdout
    assert installed.call("fabric-client", "--version").returncode == 0
    (library,) = (tmp_path / "home").glob("venv/lib/python*/site-packages")
    for name in binary:
        (library / name).unlink()
    assert "False" in installed.call("python", "-c", ABOUT).stdout


def test_without_a_compiler_the_build_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        build_wheel(tmp_path, compiled=FEW, environ={"CC": "no-such-compiler"})
    said = " ".join(str(failed.value).split())
    assert "there is no C compiler 'no-such-compiler'" in said
    assert f"leave {SWITCH} out" in said


def test_the_image_leaves_its_compiler_behind() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    stages = re.split(r"^FROM .* AS (\w[\w-]*)$", dockerfile, flags=re.MULTILINE)[1:]
    installs = [name for name, text in zip(stages[::2], stages[1::2], strict=True) if "gcc" in text]
    assert installs == ["build"]
