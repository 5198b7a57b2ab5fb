"""The modules that mypyc compiles where a wheel is built with ``FABRIC_COMPILE=1``.

A wheel without it is pure Python and runs anywhere; a compiled one has the same files, and beside
those of MODULES what mypyc has made of them, for one Python on one kind of machine.  Where that
can't be loaded, Python takes the sources.  See docs/decisions/0086-hot-modules-may-be-compiled.md.

hatchling loads this file as its build hook; run as a program, it compiles what is in the working
directory, in place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "FABRIC_COMPILE"
NAME = "inference_fabric"
"""The library of all compiled code is the module ``inference_fabric__mypyc``."""

_HOT = {
    "runtime": "version",
    "protocol": "engine_changes names regions token_bucket weights",
    "protocol.aio": "driver link node server tunnel",
    "protocol.tunnel": "base connection frame_reader frames keepalive node resume send_queue server"
    " streams unacknowledged",
    "fabric_server.auth": "authenticator rate_limits",
    "fabric_server.dialects": "body edited_text endpoints error_formats forms json_scanner"
    " keepalives large_body media media_scanner media_types media_values",
    "fabric_server.edge": "body connection edge parser request response router slices write_buffer",
    "fabric_server.gateway": "active_requests authenticate body_reader deployments gateway options"
    " requirements stream_keepalive",
    "fabric_server.jobs": "held_answer held_chat held_response",
    "fabric_server.mesh": "tunnels",
    "fabric_server.metering": "answer_ids error_events estimate events naming ollama ollama_show"
    " openai plausible sse",
    "fabric_server.net": "connection_budget deadlines memory_budget",
    "fabric_server.nodes": "circuit_breaker departures held_slots key_holders registry"
    " served_models slot_limit tunnels watch",
    "fabric_server.proxy": "answer_writer attempt charge clock ending failure_log hedging metrics"
    " outcome_rules outcomes quantile request_options request_record retries retry_budget upstream"
    " usage_check",
    "fabric_server.routing": "absence admission aliases capabilities criteria fair_queue latency"
    " load_balancer prefix_affinity scores shares weights",
    "fabric_server.storage": "waiters",
    "fabric_server.storage.spool": "cursor disk_log frames read_buffer segment_writer segments"
    " spool",
    "fabric_client": "sse",
    "fabric_client.proxy": "decoder engine_request forwarder off_loop preparation request_body"
    " response_body slots throughput upload_limit upstream",
    "fabric_client.reasoning": "body_filter form_filter repair response_filter splitter"
    " stream_filter",
}
MODULES = tuple(f"{package}.{name}" for package, names in _HOT.items() for name in names.split())
"""What is on the way of a request.  tests/structure/test_compiled.py says what can't be here."""


def wanted() -> bool:
    return os.environ.get(SWITCH, "") not in ("", "0")


class CompiledModules(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel, and says for which Python and machine it is."""

    _work: TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """Return what a build needs that installs its requirements by itself.

        mypy reads the types of what the modules import.
        """
        if not wanted():
            return []
        core = self.metadata.core
        extras = [core.optional_dependencies[name] for name in ("server", "acme", "full")]
        others = [one for extra in extras for one in extra if not one.startswith(core.name)]
        return ["mypy>=1.14", "setuptools>=78", *core.dependencies, *others]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not wanted() or version == "editable":
            return
        self._check_tools()
        self._work = TemporaryDirectory(prefix="fabric-compile-")
        work = Path(self._work.name)
        for package in self.build_config.packages:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(self.root, package), work / package, ignore=leave)
        # Under another name: setuptools would take it for a description of this very build.
        shutil.copy(Path(self.root, "pyproject.toml"), work / "mypy.toml")
        done = subprocess.run(
            [sys.executable, __file__, "build_ext", "--inplace"],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            self.app.display_error(done.stdout[-8000:])
            self.app.abort("The modules could not be compiled; the reason is above.")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        files = [f"{module.replace('.', '/')}{suffix}" for module in MODULES]
        for file in (f"{NAME}__mypyc{suffix}", *files):
            build_data["force_include"][str(work / file)] = file
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._work is not None:
            self._work.cleanup()

    def _check_tools(self) -> None:
        otherwise = f"or leave {SWITCH} out for a wheel of pure Python."
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
        if sys.platform != "win32" and shutil.which(compiler) is None:
            self.app.abort(
                f"{SWITCH} is set, and there is no C compiler {compiler!r}: install one (Debian and"
                f" Ubuntu: apt install gcc python3-dev), {otherwise}"
            )
        if find_spec("mypyc") is None:
            self.app.abort(
                f"{SWITCH} is set, and mypy is not installed where the wheel is built: install"
                f" requirements-compile.lock, {otherwise}"
            )


def compile_here() -> None:
    """Compile MODULES in the working directory, as setuptools' command line says."""
    import setuptools  # first: it has its own distutils
    from distutils.ccompiler import CCompiler  # isort: skip

    from mypyc.build import mypycify

    one_after_another = CCompiler.compile

    def side_by_side(self: Any, sources: list[str], *rest: Any, **options: Any) -> list[str]:
        def one(source: str) -> list[str]:
            return one_after_another(self, [source], *rest, **options)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [made for objects in pool.map(one, sources) for made in objects]

    CCompiler.compile = side_by_side
    files = [f"{module.replace('.', '/')}.py" for module in MODULES]
    extensions = mypycify(
        ["--config-file=mypy.toml", *files],
        opt_level="3",
        debug_level="0",
        multi_file=True,
        group_name=NAME,
    )
    _mend_slices(Path("build"))
    setuptools.setup(name=NAME, packages=[], ext_modules=extensions)


def _mend_slices(build: Path) -> None:
    """Make slices of bytes that end before they begin empty; mypyc 2.4 raises SystemError."""
    file, size = build / "bytes_ops.c", "Py_ssize_t slice_len = endn - startn;"
    text = file.read_text("utf-8")
    if text.count(size) != 1:
        raise SystemExit(f"mypyc has changed CPyBytes_GetSlice: is {__file__} to mend it still?")
    file.write_text(text.replace(size, f"{size} if (slice_len < 0) slice_len = 0;"), "utf-8")


if __name__ == "__main__":
    compile_here()
