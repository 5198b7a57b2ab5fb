"""Installs and removes services: makes the plan for this machine, shows it or carries it out."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime import places
from runtime.files import write
from runtime.output import Failure, make_directory, note, say, say_json
from runtime.services import launchd, systemd, windows_task
from runtime.services.description import Plan, Service, ServiceProblem, Step
from runtime.settings import DataclassInstance, describe

COMMAND_SECONDS = 120.0

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Machine:
    """The facts of this machine that installing needs."""

    platform: str = sys.platform
    home: Path = field(default_factory=Path.home)
    uid: int = field(default_factory=lambda: os.getuid() if hasattr(os, "getuid") else 0)
    root: Path = Path("/")
    """Folder under which files are written."""

    def is_administrator(self) -> bool:
        return self.platform != "win32" and self.uid == 0


def is_one_file() -> bool:
    """Return whether this program was started from one file, which sets ``PEX``."""
    return bool(os.environ.get("PEX"))


def program_command(program: str) -> tuple[str, ...]:
    """Return the absolute command that starts this installation of ``program``."""
    if is_one_file():
        return (str(Path(os.environ["PEX"]).absolute()),)
    name = f"{program}.exe" if sys.platform == "win32" else program
    script = Path(sys.executable).with_name(name)
    if script.is_file():
        return (str(script),)
    typed = Path(sys.argv[0])
    if typed.stem != "__main__" and typed.is_file():
        return (str(typed.absolute()),)
    return (sys.executable, "-m", program.replace("-", "_"))


def choose_data(
    program: str, data: Path, machine: Machine, *, system: bool, has_data: Callable[[Path], bool]
) -> Path:
    """Return the directory of a service when nobody has chosen one; ``data`` is the program's own.

    It is that of the service installed before, or one that a service of the system can use.
    Raises ``ServiceProblem`` when the program's own is in use already.
    """
    folder = places.system_folder() if system else places.user_folder()
    before = places.data_of_service(program, folder)
    if before is not None or not system:
        return before or data
    chosen = _system_data(program, machine)
    if has_data(data) and not has_data(chosen):
        raise ServiceProblem(
            f"there are data in {data}, which a service of the system can't use: move them with "
            f"'mv {shlex.quote(str(data))} {shlex.quote(str(chosen))}', or give --data {chosen} to "
            "begin with new ones."
        )
    return chosen


def _system_data(program: str, machine: Machine) -> Path:
    if machine.platform == "win32":
        return places.system_folder() / program
    if machine.platform == "darwin":
        return Path("/usr/local/var") / program
    return systemd.STATE / program


def plan_install(service: Service, machine: Machine, *, start: bool = True) -> Plan:
    """Return what installs the service.  Raises ``ServiceProblem``."""
    folder = _folder(service)
    pointer = {places.file_of(service.name, folder): f"{service.data}\n"}
    if machine.platform == "win32":
        plan = windows_task.plan_install(service, folder, start=start)
    elif machine.platform == "darwin":
        plan = launchd.plan_install(service, machine.home, machine.uid, start=start)
    else:
        plan = systemd.plan_install(service, machine.home, start=start)
    return Plan(plan.before, {**plan.files, **pointer}, plan.after)


def plan_uninstall(service: Service, machine: Machine) -> Plan:
    """Return what removes the service; its data stay."""
    folder = _folder(service)
    if machine.platform == "win32":
        plan = windows_task.plan_uninstall(service, folder)
    elif machine.platform == "darwin":
        plan = launchd.plan_uninstall(service, machine.home, machine.uid)
    else:
        plan = systemd.plan_uninstall(service, machine.home)
    return Plan(plan.before, {**plan.files, places.file_of(service.name, folder): ""}, plan.after)


def check(service: Service, machine: Machine, *, installs: bool = True) -> None:
    """Raise ``ServiceProblem`` if the service can't run here, or this user can't change it."""
    if service.system and machine.platform != "win32" and not machine.is_administrator():
        raise ServiceProblem("a service of the system needs root: use sudo, or --user.")
    if machine.platform not in ("win32", "darwin") and not Path("/run/systemd/system").is_dir():
        raise ServiceProblem(
            "systemd does not run on this machine: print the unit with --dry-run, or have another "
            f"program start '{shlex.join(service.command)}'."
        )
    if installs and service.system and machine.platform != "win32":
        check_readable(Path(service.command[0]))


def check_readable(program: Path) -> None:
    """Raise ``ServiceProblem`` if other users can't run the program."""
    for path in (program, *program.resolve().parents):
        wanted = stat.S_IXOTH
        if not path.stat().st_mode & wanted:
            raise ServiceProblem(
                f"{program} can't be run by the service's user, because {path} is closed to other "
                "users: install the program elsewhere, such as in /opt, or use --user."
            )


def not_passed_on(settings: DataclassInstance, prefix: str) -> list[str]:
    """Return the variables of this shell that set something which the service does not get."""
    kept = {f"{prefix}DATA", f"{prefix}CONFIG"}
    sources = {source for _, _, source in describe(settings)}
    return sorted(one for one in sources if one.startswith(prefix) and one not in kept)


def install(service: Service, machine: Machine, *, start: bool, dry_run: bool, json: bool) -> None:
    """Install a service, or show how.  Raises ``Failure``."""
    try:
        plan = plan_install(service, machine, start=start)
        if dry_run:
            show(plan, json)
            return
        check(service, machine)
        prepare_data(service)
    except ServiceProblem as problem:
        raise Failure(str(problem)) from None
    existed = next(iter(plan.files)).exists()
    changed = carry_out(plan, machine)
    if json:
        say_json({"name": service.name, "data": service.data, "changed": changed, "started": start})
        return
    state = "Installed" if changed else "Already installed:"
    say(f"{state} the service {service.name}, with its data in {service.data}.")
    say(f"Commands that you type find them: {service.name} needs no --data.")
    if changed and existed:
        note("If it was running, restart it to use the new unit.")


def uninstall(service: Service, machine: Machine, *, dry_run: bool, json: bool) -> None:
    """Stop a service and remove it, or show how; its data stay.  Raises ``Failure``."""
    plan = plan_uninstall(service, machine)
    if dry_run:
        show(plan, json)
        return
    try:
        check(service, machine, installs=False)
    except ServiceProblem as problem:
        raise Failure(str(problem)) from None
    changed = carry_out(plan, machine)
    if json:
        say_json({"name": service.name, "data": service.data, "changed": changed})
    elif changed:
        say(f"Removed the service {service.name}. Its data are still in {service.data}.")
    else:
        say(f"The service {service.name} was not installed.")


def prepare_data(service: Service) -> None:
    """Make the directory of a user's service; check that of another user.

    systemd makes that of a user that it makes up.  Raises ``Failure`` or ``ServiceProblem``.
    """
    if not service.system:
        make_directory(service.data)
    if service.user is None or not hasattr(os, "getuid"):
        return
    import pwd

    try:
        uid = pwd.getpwnam(service.user).pw_uid
    except KeyError:
        raise ServiceProblem(f"there is no user {service.user}: correct --run-as.") from None
    if not service.data.is_dir() or service.data.stat().st_uid != uid:
        raise ServiceProblem(
            f"{service.data} is not a directory of {service.user}: make it with 'install -d -m 700 "
            f"-o {service.user} {shlex.quote(str(service.data))}'."
        )


def show(plan: Plan, json: bool) -> None:
    """Print what a plan would do."""
    steps = [shlex.join(step.words) for step in (*plan.before, *plan.after)]
    if json:
        files = {str(path): text for path, text in plan.files.items()}
        say_json({"files": files, "commands": steps})
        return
    for path, text in plan.files.items():
        say(f"# {path}" if text else f"# remove {path}")
        for line in text.splitlines():
            say(line)
        say()
    for step in steps:
        say(f"# {step}")


def carry_out(plan: Plan, machine: Machine, run: Run | None = None) -> bool:
    """Do what the plan says; return whether a file has changed.  Raises ``Failure``."""
    run = run or _run
    for step in plan.before:
        _do(step, run)
    changed = False
    for path, text in plan.files.items():
        changed |= _put(machine.root / path.relative_to(path.anchor), text)
    for step in plan.after:
        _do(step, run)
    return changed


def _put(path: Path, text: str) -> bool:
    """Write a file, or remove it if ``text`` is empty; return whether that changed anything."""
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if before == text:
            return False
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, text)
        else:
            path.unlink()
    except OSError as error:
        raise Failure(f"can't write {path} ({error.strerror or error}).") from None
    return True


def _do(step: Step, run: Run) -> None:
    done = run(step.words)
    if done.returncode == 0:
        return
    reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    if step.may_fail:
        if step.advice:
            note(step.advice)
        return
    raise Failure(f"'{shlex.join(step.words)}' failed: {reason}.")


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    program = shutil.which(words[0])
    if program is None:
        return subprocess.CompletedProcess(words, 127, "", "there is no such program here")
    return subprocess.run(  # noqa: S603 - words of a plan
        [program, *words[1:]],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def _folder(service: Service) -> Path:
    return places.system_folder() if service.system else places.user_folder()
