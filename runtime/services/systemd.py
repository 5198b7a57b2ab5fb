"""Units of systemd: of the system, with a user that systemd makes up, or of one user.

https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.services.description import Plan, Service, ServiceProblem, Step

STATE = Path("/var/lib")
CACHE = Path("/var/cache")
SYSTEM_UNITS = Path("/etc/systemd/system")
HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""What ``ProtectHome`` hides."""
OPEN_FILES = 1_048_576
RESTART_SECONDS = 5
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

_LINGER = (
    "The service would end when you log out: have root run 'loginctl enable-linger' for your user."
)
_ALWAYS = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
UMask=0077
"""
_SYSTEM = """\
ProtectSystem=strict
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
# ProtectClock allows the one device that it names, and thereby hides all others.
_WITHOUT_DEVICES = "PrivateDevices=yes\nProtectClock=yes\n"


def unit_path(service: Service, home: Path) -> Path:
    """Return the path of the unit; ``home`` is the user's."""
    folder = SYSTEM_UNITS if service.system else home / ".config" / "systemd" / "user"
    return folder / f"{service.name}.service"


def plan_install(service: Service, home: Path, *, start: bool) -> Plan:
    """Return what installs the unit.  Raises ``ServiceProblem``."""
    after = [Step((*_systemctl(service), "daemon-reload"))]
    enable = ("enable", "--now") if start else ("enable",)
    after.append(Step((*_systemctl(service), *enable, service.name)))
    if not service.system:  # or it would end when the user logs out
        after.append(Step(("loginctl", "enable-linger"), True, _LINGER))
    return Plan((), {unit_path(service, home): unit(service)}, after)


def plan_uninstall(service: Service, home: Path) -> Plan:
    """Return what removes the unit."""
    control = _systemctl(service)
    return Plan(
        [Step((*control, "disable", "--now", service.name), may_fail=True)],
        {unit_path(service, home): ""},
        [Step((*control, "daemon-reload"))],
    )


def unit(service: Service) -> str:
    """Return the text of the unit.  Raises ``ServiceProblem``."""
    for text in (*service.command, *service.environment.values(), service.user or ""):
        if not text.isprintable():
            raise ServiceProblem(f"{text!r} can't be in a unit: it has characters not printable.")
    lines = [
        "[Unit]",
        f"Description={service.about}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        *(f"Environment={_quoted(f'{k}={v}')}" for k, v in service.environment.items()),
        f"ExecStart={_command(service.command)}",
        *([f"ExecReload={_command(service.reload)}"] if service.reload else []),
        "Restart=on-failure",
        f"RestartSec={RESTART_SECONDS}",
        *(
            [f"RestartPreventExitStatus={' '.join(map(str, service.final_codes))}"]
            if service.final_codes
            else []
        ),
        "KillMode=mixed",
        f"TimeoutStopSec={service.stop_seconds}",
        f"LimitNOFILE={OPEN_FILES}",
        *(_system_lines(service) if service.system else []),
        *_ALWAYS.splitlines(),
        "",
        "[Install]",
        f"WantedBy={'multi-user' if service.system else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


def _system_lines(service: Service) -> list[str]:
    capabilities = "CAP_NET_BIND_SERVICE" if service.low_ports else ""
    lines = [
        *_place(service),
        *_cache(service),
        *_SYSTEM.splitlines(),
        f"CapabilityBoundingSet={capabilities}",
    ]
    if capabilities:
        lines.append(f"AmbientCapabilities={capabilities}")
    if not service.devices:
        lines += _WITHOUT_DEVICES.splitlines()
    at_home = any(_is_in(Path(one), HOMES) for one in (service.command[0], service.data))
    lines.append(f"ProtectHome={'read-only' if at_home else 'yes'}")
    return lines


def _place(service: Service) -> list[str]:
    """Return who runs the service, and where it may write."""
    owned = service.data.parent == STATE and _PLAIN.fullmatch(service.data.name) is not None
    if service.user is None and not owned:
        raise ServiceProblem(
            f"{service.data} is not in {STATE}, where systemd gives the service a directory of "
            f"its own: choose --data {STATE / service.name}, or with --run-as the user of the "
            "directory."
        )
    who = "DynamicUser=yes" if service.user is None else f"User={service.user}"
    if owned:
        return [who, f"StateDirectory={service.data.name}", "StateDirectoryMode=0700"]
    return [who, f"ReadWritePaths={_quoted(str(service.data))}"]


def _cache(service: Service) -> list[str]:
    """Return where a program of one file unpacks itself: its user has no home."""
    if not service.one_file:
        return []
    name = service.name
    return [
        f"CacheDirectory={name}",
        "CacheDirectoryMode=0700",
        f"Environment=XDG_CACHE_HOME={CACHE / name}",
    ]


def _is_in(path: Path, folders: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _systemctl(service: Service) -> tuple[str, ...]:
    return ("systemctl",) if service.system else ("systemctl", "--user")


def _command(words: tuple[str, ...]) -> str:
    """Return a command line; only in its arguments does ``$`` name a variable."""
    program, *arguments = words
    if set(program) & set("\"'\\"):
        raise ServiceProblem(f"systemd starts no program with quotes in its path: {program}.")
    return " ".join([_quoted(program), *(_quoted(one).replace("$", "$$") for one in arguments)])


def _quoted(text: str) -> str:
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
