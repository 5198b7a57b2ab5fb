"""Services: their units, property lists and tasks, and what installing them does.

launchd and Windows' task scheduler are not here: their files are read back by the readers of their
formats, and the commands are taken down instead of run.
"""

from __future__ import annotations

import dataclasses
import plistlib
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from runtime import places
from runtime.output import Failure
from runtime.services import install, launchd, systemd, windows_task
from runtime.services.description import Service, ServiceProblem
from runtime.services.install import Machine, carry_out
from runtime.settings import SettingsError

NODE = Service(
    name="fabric-client",
    about="Fabric node",
    command=("/opt/fabric/bin/fabric-client", "run"),
    data_variable="FABRIC_NODE_DATA",
    data=Path("/var/lib/fabric-client"),
    system=True,
    final_codes=(2, 3),
    final_flag="--as-service",
    devices=True,
)
SERVER = dataclasses.replace(
    NODE,
    name="fabric-server",
    about="Fabric server",
    command=("/opt/fabric/bin/fabric-server", "up"),
    reload=("/opt/fabric/bin/fabric-server", "reload"),
    data_variable="FABRIC_SERVER_DATA",
    data=Path("/var/lib/fabric-server"),
    final_codes=(),
    final_flag="",
    low_ports=True,
    devices=False,
)
ODD = dataclasses.replace(
    NODE,
    command=("/opt/a b %h $HOME/fabric-client", "run", '$X %h "\\'),
    data=Path('/srv/a "b" %h $HOME \\c'),
    user="fabric",
)
SERVICES = [
    SERVER,
    NODE,
    ODD,
    dataclasses.replace(NODE, one_file=True, name="one-file"),
    dataclasses.replace(NODE, system=False, data=Path("/home/alice/.fabric/node")),
    dataclasses.replace(NODE, user="alice", data=Path("/home/alice/node"), config=("F", "/x y")),
]


class Recorder:
    """Stands in for the service manager's commands: takes them down, and some of them fail."""

    def __init__(self, *failing: str) -> None:
        self.commands: list[str] = []
        self.failing = failing

    def __call__(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(" ".join(words))
        code = 1 if any(one in words for one in self.failing) else 0
        return subprocess.CompletedProcess(words, code, "", "Unit is masked.\n" * code)


def entries(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


# ── systemd ───────────────────────────────────────────────────────────────────────────────────


def test_a_server_with_a_low_port_gets_one_capability_and_another_one_none() -> None:
    unit = entries(systemd.unit(SERVER))
    assert unit["AmbientCapabilities"] == unit["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    unit = entries(systemd.unit(dataclasses.replace(SERVER, low_ports=False)))
    assert unit["CapabilityBoundingSet"] == [""]
    assert "AmbientCapabilities" not in unit
    assert unit["DynamicUser"] == ["yes"]
    assert unit["StateDirectory"] == ["fabric-server"]
    assert unit["Environment"] == ['"FABRIC_SERVER_DATA=/var/lib/fabric-server"']
    assert unit["ExecReload"] == ['"/opt/fabric/bin/fabric-server" "reload"']


def test_a_node_that_was_refused_for_good_is_not_started_again() -> None:
    unit = entries(systemd.unit(NODE))
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["2 3"]
    assert "PrivateDevices" not in unit  # it reads the GPU
    plist = plistlib.loads(launchd.plist(ODD, Path("/Users/alice")).encode())
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert plist["ProgramArguments"][-1] == "--as-service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("service", SERVICES, ids=lambda one: f"{one.name}-{one.data.name}")
def test_systemd_reads_the_unit_without_a_complaint(tmp_path: Path, service: Service) -> None:
    program = tmp_path / Path(service.command[0]).relative_to("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    there = dataclasses.replace(
        service,
        command=(str(program), *service.command[1:]),
        reload=(str(program), "reload") if service.reload else (),
    )
    file = tmp_path / f"{service.name}.service"
    file.write_text(systemd.unit(there))
    words = ["systemd-analyze", "verify", *([] if service.system else ["--user"]), str(file)]
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if service.name in line]
    assert complaints == [], done.stderr
    if service.system:
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_complaint_of_systemd_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "fabric-server.service"
    file.write_text(systemd.unit(SERVER).replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60
    )
    assert "NoNewPrivilege" in done.stderr


def test_what_can_not_be_in_a_unit_is_refused() -> None:
    with pytest.raises(ServiceProblem, match="not printable"):
        systemd.unit(dataclasses.replace(NODE, data=Path("/var/lib/a\nExecStartPre=/bin/sh")))
    with pytest.raises(ServiceProblem, match="quotes"):
        systemd.unit(dataclasses.replace(NODE, command=('/opt/"/fabric-client', "run")))
    with pytest.raises(ServiceProblem, match="--run-as"):
        systemd.unit(dataclasses.replace(NODE, data=Path("/srv/node")))
    with pytest.raises(ServiceProblem, match="--run-as"):
        systemd.unit(dataclasses.replace(NODE, data=Path("/var/lib/a b")))
    with pytest.raises(ServiceProblem, match="--run-as"):
        launchd.plist(NODE, Path("/Users/alice"))


def test_special_characters_of_units_stay_what_they_are() -> None:
    unit = entries(systemd.unit(ODD))
    program = '"/opt/a b %%h $HOME/fabric-client"'
    assert unit["ExecStart"] == [f'{program} "run" "$$X %%h \\"\\\\"']
    assert unit["ReadWritePaths"] == ['"/srv/a \\"b\\" %%h $HOME \\\\c"']
    assert unit["User"] == ["fabric"]


# ── launchd and Windows ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("service", [ODD, SERVICES[4]], ids=["system", "user"])
def test_a_property_list_is_read_back_as_it_was_meant(service: Service) -> None:
    home = Path("/Users/alice")
    plist = plistlib.loads(launchd.plist(service, home).encode())
    assert plist["ProgramArguments"] == [*service.command, "--as-service"]
    assert plist["EnvironmentVariables"] == {"FABRIC_NODE_DATA": str(service.data)}
    assert plist.get("UserName") == service.user
    assert plist["RunAtLoad"] is True
    assert plist["Label"] in str(launchd.plist_path(service, home))


def test_a_task_is_read_back_as_it_was_meant() -> None:
    root = ElementTree.fromstring(windows_task.task(ODD))
    names = {"t": windows_task.NAMESPACE}
    assert root.findtext(".//t:Command", namespaces=names) == ODD.command[0]
    arguments = root.findtext(".//t:Arguments", namespaces=names)
    assert arguments == r'run "$X %h \"\\" --data "/srv/a \"b\" %h $HOME \c" --as-service'
    assert root.find(".//t:BootTrigger", names) is not None


# ── installing ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("platform", "start", "stop"),
    [
        ("linux", "systemctl enable --now fabric-client", "systemctl disable --now fabric-client"),
        ("darwin", "launchctl bootstrap system", "launchctl bootout system/"),
        ("win32", "schtasks /Create /F /TN fabric-client", "schtasks /Delete /F"),
    ],
)
def test_installing_twice_changes_nothing_and_removing_leaves_nothing(
    tmp_path: Path, platform: str, start: str, stop: str
) -> None:
    machine = Machine(platform, Path("/home/alice"), 0, tmp_path)
    service = dataclasses.replace(NODE, user="fabric")
    run = Recorder("bootout", "/End")  # as when it does not run
    plan = install.plan_install(service, machine)
    assert carry_out(plan, machine, run) is True
    assert any(command.startswith(start) for command in run.commands)
    assert carry_out(plan, machine, run) is False
    pointer = places.file_of("fabric-client", tmp_path / "etc/fabric")
    assert places.data_of_service("fabric-client", pointer.parent) == service.data
    removal = install.plan_uninstall(service, machine)
    assert carry_out(removal, machine, run) is True
    assert any(command.startswith(stop) for command in run.commands)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert carry_out(removal, machine, run) is False


def test_a_command_that_fails_is_told_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine("linux", Path("/home/alice"), 1000, tmp_path)
    service = SERVICES[4]
    plan = install.plan_install(service, machine)
    with pytest.raises(Failure, match="daemon-reload' failed: Unit is masked"):
        carry_out(plan, machine, Recorder("daemon-reload"))
    carry_out(plan, machine, Recorder("loginctl"))
    assert "loginctl enable-linger" in capsys.readouterr().err


def test_a_user_needs_root_for_a_service_of_the_system() -> None:
    with pytest.raises(ServiceProblem, match="needs root"):
        install.check(NODE, Machine("linux", uid=1000))


def test_a_program_that_the_service_can_not_run_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "closed" / "fabric-client"
    program.parent.mkdir(mode=0o700)
    program.touch(mode=0o755)
    with pytest.raises(ServiceProblem, match="closed to other users"):
        install.check_readable(program)


def test_data_of_the_program_s_own_directory_are_not_left_behind(tmp_path: Path) -> None:
    machine = Machine("linux", tmp_path, 0)

    def chosen(*, system: bool, has_data: bool) -> Path:
        return install.choose_data(
            "fabric-nothing",
            tmp_path,
            machine,
            system=system,
            has_data=lambda path: has_data and path == tmp_path,
        )

    assert chosen(system=False, has_data=True) == tmp_path
    assert chosen(system=True, has_data=False) == Path("/var/lib/fabric-nothing")
    with pytest.raises(ServiceProblem, match=r"mv .* /var/lib/fabric-nothing"):
        chosen(system=True, has_data=True)


# ── the file that names the data ──────────────────────────────────────────────────────────────


def test_the_user_s_service_comes_before_the_machine_s(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    assert places.data_of_service("p", user, system) is None
    for folder in (system, user):
        folder.mkdir()
        places.file_of("p", folder).write_text(f"{folder}/data\n")
        assert places.data_of_service("p", user, system) == folder / "data"


@pytest.mark.parametrize("text", ["", "relative", "/a\n/b", "/a\x1b[2J"])
def test_a_file_that_names_no_directory_is_an_error(tmp_path: Path, text: str) -> None:
    places.file_of("p", tmp_path).write_text(text)
    with pytest.raises(SettingsError, match="absolute path"):
        places.data_of_service("p", tmp_path)


def test_a_unit_and_the_file_are_readable_by_everybody(tmp_path: Path) -> None:
    machine = Machine("linux", Path("/home/alice"), 0, tmp_path)
    carry_out(install.plan_install(NODE, machine), machine, Recorder())
    modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.rglob("*") if one.is_file()}
    assert modes == {0o644}
