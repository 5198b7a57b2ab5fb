"""The modules that release/compiled.py lists do the same when mypyc has compiled them.

What can't be compiled: classes of msgspec, which don't see their fields then; classes of asyncio's,
which crash when something keeps a weak reference to them; exceptions with defaults in the class,
and all names but the first of ``a = b = 0`` there, which get lost; bases of classes that are not
compiled themselves.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from release.compiled import MODULES
from tests.structure.test_structure import PACKAGES, ROOT, modules

FOREIGN = {"msgspec", "asyncio", "ssl", "aiohttp", "logging"}
"""Packages of whose classes no compiled class is made."""


def compiled() -> dict[str, ast.Module]:
    known = modules()
    paths = {f"{name.replace('.', '/')}.py" for name in MODULES}
    return {path: tree for path, tree in known.items() if path in paths}


def classes(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.ClassDef, list[str]]]:
    """Yield each class with its path, and the full names of its bases."""
    for path, tree in trees.items():
        own = path.removesuffix(".py").replace("/", ".")
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
            elif isinstance(node, ast.ClassDef):
                names.setdefault(node.name, f"{own}.{node.name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                written = [ast.unparse(base).partition("[")[0] for base in node.bases]
                found = [
                    names.get(first, first) + dot + rest
                    for first, dot, rest in (name.partition(".") for name in written)
                ]
                yield path, node, found


def origins() -> dict[str, set[str]]:
    """Return, for each class by its full name, the names of all classes that it is made of."""
    direct = {
        f"{path.removesuffix('.py').replace('/', '.')}.{node.name}": bases
        for path, node, bases in classes(modules())
    }
    found: dict[str, set[str]] = {}
    for name, bases in direct.items():
        known, ahead = set(), list(bases)
        while ahead:
            base = ahead.pop()
            if base not in known:
                known.add(base)
                ahead += direct.get(base, ())
        found[name] = known
    return found


def test_each_listed_module_exists_once() -> None:
    assert len(set(MODULES)) == len(MODULES) > 100
    known = {path.removesuffix(".py").replace("/", ".") for path in modules()}
    assert set(MODULES) <= known, "take what is gone out of release/compiled.py"


def test_no_compiled_class_is_one_that_mypyc_changes() -> None:
    wrong = [
        f"{name} is a {base}: take its module out of release/compiled.py, or the class elsewhere"
        for name, bases in origins().items()
        if name.rpartition(".")[0] in MODULES
        for base in bases
        if base.partition(".")[0] in FOREIGN
    ]
    assert wrong == []


def test_no_compiled_exception_has_a_default_in_its_class() -> None:
    wrong = [
        f"{path}:{node.name}"
        for path, node, bases in classes(compiled())
        if any(base.endswith(("Error", "Exception")) for base in bases)
        and any(isinstance(one, ast.AnnAssign | ast.Assign) and one.value for one in node.body)
    ]
    assert wrong == []


def test_no_compiled_class_gives_a_default_to_several_attributes_at_once() -> None:
    wrong = [
        f"{path}:{one.lineno}: {ast.unparse(one)}"
        for path, node, _ in classes(compiled())
        for one in node.body
        if isinstance(one, ast.Assign) and len(one.targets) > 1
    ]
    assert wrong == [], "give each attribute its default in a line of its own"


def test_no_interpreted_class_is_made_of_a_compiled_one() -> None:
    listed = compiled()
    interpreted = {path: tree for path, tree in modules().items() if path not in listed}
    wrong = [
        f"{path}:{node.name} is a {base}"
        for path, node, bases in classes(interpreted)
        for base in bases
        if base.rpartition(".")[0] in MODULES
    ]
    assert wrong == []


def test_make_compiles_again_when_any_package_has_changed() -> None:
    assert f"PACKAGES := {' '.join(PACKAGES)}\n" in (ROOT / "Makefile").read_text("utf-8")
