"""The wheel: what is in it, what it is called, and that its version is that of the programs."""

from __future__ import annotations

import ast
import re
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from runtime.version import VERSION
from tests.packaging.checkout import PACKAGES, ROOT, build_wheel, run
from tests.packaging.environment import PINNED


def test_the_wheel_has_all_packages_and_nothing_else(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path)
    assert wheel.name == f"inference_fabric-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"inference_fabric-{VERSION}.dist-info"
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        commands = archive.read(f"{info}/entry_points.txt").decode()
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, info}
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
        for file in (ROOT / package).rglob("*.py"):
            assert str(file.relative_to(ROOT)) in names
    for migration in (ROOT / "sql").glob("*.sql"):
        assert f"sql/{migration.name}" in names
    assert (metadata["Name"], metadata["Version"]) == ("inference-fabric", VERSION)
    for command in ("fabric-server", "fabric-client", "fabric-consumer"):
        assert f"{command} = " in commands


def test_the_image_is_built_from_the_same_packages() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8").splitlines()
    visible = (ROOT / "docker" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for package in PACKAGES:
        assert f"COPY {package} {package}" in dockerfile
        assert f"!{package}" in visible


def test_each_package_says_what_belongs_there() -> None:
    """CONTRIBUTING.md sends people to the docstrings of ``__init__.py``."""
    for package in PACKAGES:
        for folder in {file.parent for file in (ROOT / package).rglob("*.py")}:
            start = folder / "__init__.py"
            assert start.exists(), f"{start.relative_to(ROOT)} is missing"
            text = ast.get_docstring(ast.parse(start.read_text("utf-8"))) or ""
            assert len(text.split()) > 3, f"{start.relative_to(ROOT)} has no docstring"


def test_the_constraints_of_a_release_pin_all_that_its_lock_file_pins(tmp_path: Path) -> None:
    commands = run(["make", "--dry-run", "--always-make", "dist"], cwd=ROOT).splitlines()
    (command,) = [line for line in commands if line.endswith("> dist/constraints.txt")]
    lock = (ROOT / "requirements-full.lock").read_text("utf-8")
    (tmp_path / "requirements-full.lock").write_text(lock)
    (tmp_path / "dist").mkdir()
    run(command, cwd=tmp_path)
    lines = (tmp_path / "dist" / "constraints.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == PINNED.findall(lock)
    assert not [line for line in lines if "\\" in line or "--hash" in line]
    for line in lines:
        Requirement(line)


def test_the_images_take_the_lock_files_of_their_extras() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    visible = (ROOT / "docker" / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    locks = set(re.findall(r"requirements[\w-]*\.lock", dockerfile))
    assert {"requirements.lock", "requirements-full.lock"} <= locks
    assert {f"!{lock}" for lock in locks} <= set(visible)
    stages = {stage: base for base, stage in re.findall(r"^FROM (\S+) AS (\S+)$", dockerfile, re.M)}
    assert stages["client"] == "program"
    assert stages["server"] == stages["consumer"] == "with-clients"
