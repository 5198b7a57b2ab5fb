"""A machine with systemd of its own, in namespaces of this one, with our programs installed.

    with SystemdMachine() as machine:
        machine.run("fabric-server", "install-service")
        assert machine.run("systemctl", "is-active", "fabric-server") == "active"

It sees this machine's files through an overlay: what it writes or deletes exists only there, and is
gone at its end.  ``/tmp`` and ``/run`` are its own and empty, ``/sys`` and ``/proc/sys`` can't be
written, it has a loopback network and a cgroup of its own.  Units that would set up a whole
machine are masked.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SYSTEMD = Path("/lib/systemd/systemd")
BOOT_SECONDS = 60.0
COMMAND_SECONDS = 90.0
CHECKOUT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
TOOLS = ("unshare", "nsenter", "mount", "chroot", "ip", "systemctl")

# `stat` proves that the new root is the overlay, before anything is started there.
_ROOT = """
set -eu
mkdir -p {base}
mount -t tmpfs tmpfs {base}
mkdir {base}/upper {base}/work {base}/root
mount -t overlay overlay -o lowerdir=/,upperdir={base}/upper,workdir={base}/work {base}/root
cd {base}/root
test "$(stat -f -c %T .)" = overlayfs
"""
_BOOT = (
    _ROOT
    + """
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
mkdir -p opt/python opt/checkout opt/packages opt/fabric/bin
mount --bind {python} opt/python
mount --bind {checkout} opt/checkout
mount --bind {packages} opt/packages
for one in python checkout packages; do mount -o remount,bind,ro opt/$one; done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for one in {masked}; do ln -sf /dev/null etc/systemd/system/$one; done
for one in server client; do
    cat > opt/fabric/bin/fabric-$one << END
#!/opt/python/bin/{version}
import sys
sys.path[:0] = ["/opt/checkout", "/opt/packages"]
from fabric_$one.__main__ import main
main()
END
    chmod 755 opt/fabric/bin/fabric-$one
    mkdir -p etc/systemd/system/fabric-$one.service.d
    # This interpreter may look for its library in a home directory.
    printf '[Service]\\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\\n' \\
        > etc/systemd/system/fabric-$one.service.d/interpreter.conf
done
ip link set lo up
exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=fabric-lab \\
    {systemd} --system --unit=basic.target --show-status=0
"""
)
_MASKED = (
    *("systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service"),
    *("systemd-tmpfiles-clean.timer", "systemd-sysctl.service", "systemd-modules-load.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-remount-fs.service"),
    *("systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-binfmt.service"),
    *("systemd-journal-flush.service", "systemd-update-utmp.service", "systemd-sysusers.service"),
    *("systemd-random-seed.service", "kmod-static-nodes.service", "systemd-networkd.service"),
    *("systemd-resolved.service", "systemd-timesyncd.service", "systemd-hwdb-update.service"),
    *("ldconfig.service", "systemd-journal-catalog-update.service", "tmp.mount"),
    *("systemd-update-done.service", "systemd-machine-id-commit.service"),
    *("dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount"),
    *("sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount"),
)


class SystemdMachine:
    """Runs while entered; everything on it ends with it."""

    def __init__(self) -> None:
        self._cgroup = _cgroups() / f"fabric-lab-{os.getpid()}"
        self._outer: subprocess.Popen[bytes] | None = None
        self._init = 0
        """Process id of its systemd, as this machine counts."""

    @staticmethod
    @functools.cache
    def why_not() -> str | None:
        """Return why it can't run on this machine; None when it can."""
        if sys.platform != "linux" or os.geteuid() != 0:
            return "namespaces need root, on Linux"
        if missing := [one for one in TOOLS if shutil.which(one) is None]:
            return f"{', '.join(missing)} missing"
        if not SYSTEMD.exists():
            return "systemd is not installed"
        script = _ROOT.format(base="/mnt")
        probe = [*_unshare("--mount"), "sh", "-c", script]
        done = subprocess.run(probe, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        return None if done.returncode == 0 else f"no overlay: {done.stderr.strip()}"

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        boot = _BOOT.format(
            base="/mnt",
            python=sys.base_prefix,
            checkout=CHECKOUT,
            packages=sysconfig.get_path("purelib"),
            masked=" ".join(_MASKED),
            version=PYTHON,
            systemd=SYSTEMD,
        )
        namespaces = _unshare("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")
        enter = 'echo $$ > "$0" && exec "$@"'
        words = ["sh", "-c", enter, str(self._cgroup / "cgroup.procs"), *namespaces]
        self._outer = subprocess.Popen([*words, "sh", "-c", boot], stdin=subprocess.DEVNULL)
        try:
            self._await_boot(self._outer)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._outer is not None
        # All processes of the namespace end with its first one, which the outer one waits for.
        if self._init:
            os.kill(self._init, signal.SIGKILL)
        else:
            self._outer.kill()
        self._outer.wait()
        give_up = time.monotonic() + COMMAND_SECONDS
        while _processes(self._cgroup) and time.monotonic() < give_up:
            time.sleep(0.05)  # the kernel ends them: there is no event for it
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            Path(folder).rmdir()

    def call(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command there, as root, to its end."""
        there = ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w"]
        path = "PATH=/opt/fabric/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            [*there, "env", "-i", path, "HOME=/root", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )

    def run(self, *words: str, stdin: str = "") -> str:
        """Run a command that must succeed; return its output without the last line end."""
        done = self.call(*words, stdin=stdin)
        assert done.returncode == 0, (words, done)
        return done.stdout.rstrip("\n")

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        text = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in text.splitlines())

    def _await_boot(self, outer: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        give_up = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < give_up and outer.poll() is None:
            found = children.read_text().split()
            if found:
                self._init = int(found[0])
                state = self.call("systemctl", "is-system-running").stdout.strip()
                if state in ("running", "degraded"):
                    return
            time.sleep(0.1)  # systemd tells only its own children when it is up
        raise RuntimeError("systemd did not start")


def _unshare(*namespaces: str) -> list[str]:
    return ["unshare", "--kill-child", "--fork", "--propagation", "private", *namespaces]


def _cgroups() -> Path:
    """Return where the second version of cgroups is mounted."""
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.exists() else Path("/sys/fs/cgroup")


def _processes(cgroup: Path) -> bool:
    return any(path.read_text() for path in cgroup.rglob("cgroup.procs"))
