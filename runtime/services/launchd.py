"""Property lists of launchd: daemons of the machine, and agents of a user (launchd.plist(5))."""

from __future__ import annotations

import plistlib
from pathlib import Path

from runtime.services.description import Plan, Service, ServiceProblem, Step

THROTTLE_SECONDS = 10
OPEN_FILES = 65_536


def label(service: Service) -> str:
    return f"inference-fabric.{service.name}"


def plist_path(service: Service, home: Path) -> Path:
    """Return the path of the property list; ``home`` is the user's."""
    library = Path("/Library/LaunchDaemons") if service.system else home / "Library/LaunchAgents"
    return library / f"{label(service)}.plist"


def plan_install(service: Service, home: Path, uid: int, *, start: bool) -> Plan:
    """Return what installs the property list.  Raises ``ServiceProblem``."""
    path = plist_path(service, home)
    after = []
    if start:  # it starts at the next login or boot anyway
        after.append(Step(("launchctl", "bootout", _target(service, uid)), may_fail=True))
        after.append(Step(("launchctl", "bootstrap", _domain(service, uid), str(path))))
    return Plan((), {path: plist(service, home)}, after)


def plan_uninstall(service: Service, home: Path, uid: int) -> Plan:
    """Return what removes the property list."""
    stop = Step(("launchctl", "bootout", _target(service, uid)), may_fail=True)
    return Plan([stop], {plist_path(service, home): ""})


def plist(service: Service, home: Path) -> str:
    """Return the property list.  Raises ``ServiceProblem``."""
    if service.system and service.user is None:
        raise ServiceProblem("launchd would run the service as root: name a user with --run-as.")
    logs = Path("/Library/Logs") if service.system else home / "Library/Logs"
    flags = [service.final_flag] if service.final_flag else []
    entries: dict[str, object] = {
        "Label": label(service),
        "ProgramArguments": [*service.command, *flags],
        "EnvironmentVariables": service.environment,
        "RunAtLoad": True,
        # launchd knows success and failure only: what is final ends with success.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_SECONDS,
        "ExitTimeOut": service.stop_seconds,
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardErrorPath": str(logs / f"{service.name}.log"),
        "Umask": 0o077,
    }
    if service.user is not None:
        entries["UserName"] = service.user
    return plistlib.dumps(entries).decode()


def _domain(service: Service, uid: int) -> str:
    return "system" if service.system else f"gui/{uid}"


def _target(service: Service, uid: int) -> str:
    return f"{_domain(service, uid)}/{label(service)}"
