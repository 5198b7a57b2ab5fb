"""Tasks of Windows' task scheduler that start with the machine, or with the user's session.

A service would need a program that speaks with the service manager; a task runs any program.
https://learn.microsoft.com/windows/win32/taskschd/task-scheduler-schema
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from runtime.services.description import Plan, Service, Step

NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
LOCAL_SERVICE = "S-1-5-19"


def task_path(service: Service, folder: Path) -> Path:
    """Return the path of the task's text; ``folder`` is the one beside the path of its data."""
    return folder / f"{service.name}.xml"


def plan_install(service: Service, folder: Path, *, start: bool) -> Plan:
    """Return what makes the task."""
    path = task_path(service, folder)
    steps = [Step(("schtasks", "/Create", "/F", "/TN", service.name, "/XML", str(path)))]
    if start:
        steps.append(Step(("schtasks", "/Run", "/TN", service.name)))
    return Plan((), {path: task(service)}, steps)


def plan_uninstall(service: Service, folder: Path) -> Plan:
    """Return what removes the task."""
    steps = [
        Step(("schtasks", "/End", "/TN", service.name), may_fail=True),
        Step(("schtasks", "/Delete", "/F", "/TN", service.name), may_fail=True),
    ]
    return Plan(steps, {task_path(service, folder): ""})


def task(service: Service) -> str:
    """Return the task as XML."""
    root = Element("Task", version="1.2", xmlns=NAMESPACE)
    SubElement(SubElement(root, "RegistrationInfo"), "Description").text = service.about
    triggers = SubElement(root, "Triggers")
    trigger = SubElement(triggers, "BootTrigger" if service.system else "LogonTrigger")
    SubElement(trigger, "Enabled").text = "true"
    principal = SubElement(SubElement(root, "Principals"), "Principal", id="Author")
    if service.system:
        SubElement(principal, "UserId").text = service.user or LOCAL_SERVICE
    else:
        SubElement(principal, "LogonType").text = "InteractiveToken"
    SubElement(principal, "RunLevel").text = "LeastPrivilege"
    settings = SubElement(root, "Settings")
    for name, value in (
        ("MultipleInstancesPolicy", "IgnoreNew"),
        ("DisallowStartIfOnBatteries", "false"),
        ("StopIfGoingOnBatteries", "false"),
        ("StartWhenAvailable", "true"),
        ("ExecutionTimeLimit", "PT0S"),
    ):
        SubElement(settings, name).text = value
    restart = SubElement(settings, "RestartOnFailure")
    SubElement(restart, "Interval").text = "PT1M"
    SubElement(restart, "Count").text = "999"
    action = SubElement(SubElement(root, "Actions", Context="Author"), "Exec")
    SubElement(action, "Command").text = service.command[0]
    SubElement(action, "Arguments").text = subprocess.list2cmdline(_arguments(service))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _arguments(service: Service) -> list[str]:
    """Return the arguments; a task has no environment of its own."""
    config = [] if service.config is None else ["--config", service.config[1]]
    flags = [service.final_flag] if service.final_flag else []
    return [*service.command[1:], "--data", str(service.data), *config, *flags]
