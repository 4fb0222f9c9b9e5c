"""Machines that are run by a real systemd, on hosts that are namespaces; they boot in seconds.

A machine has PID, mount, control group and UTS namespaces, and an overlay of the file system of
this machine, in a tmpfs: nothing that happens there is seen outside. This pyvtep is installed in
/opt/pyvtep, as for all users. The processes end with the test process, however that dies.
"""

import shlex
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import vtep
from tests.netns.hosts import DEADLINE, wait_until
from vtep.testing.lab import Host

_BOOT = 2 * DEADLINE
"""Seconds that systemd may take to come up on a busy machine."""

# $1: a control group; $2: the virtual environment; $3: its site-packages, below it; $4: vtep.
_OUTSIDE = """
set -e
mount -t tmpfs none /mnt
mkdir /mnt/group && mount -t cgroup2 none /mnt/group
mkdir "/mnt/group/$1" && echo $$ >"/mnt/group/$1/cgroup.procs"
exec unshare --pid --fork --kill-child --cgroup --uts --ipc -- sh -c "$INSIDE" sh "$@"
"""

_INSIDE = """
set -e
umount /mnt/group
mkdir /mnt/upper /mnt/work /mnt/root /mnt/venv-upper /mnt/venv-work
mount -t overlay none -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mkdir -p opt/pyvtep etc/pyvtep old
mount -t overlay none \
    -o "lowerdir=$2,upperdir=/mnt/venv-upper,workdir=/mnt/venv-work" opt/pyvtep
rm -rf "opt/pyvtep/$3/vtep"
mkdir "opt/pyvtep/$3/vtep"
mount --bind "$4" "opt/pyvtep/$3/vtep"
printf '#!/opt/pyvtep/bin/python\\nfrom vtep.__main__ import main\\nmain()\\n' >start
mv start opt/pyvtep/bin/pyvtep
chmod 755 opt/pyvtep/bin/pyvtep
mount -t proc none proc
mount -t sysfs none sys
mount -t cgroup2 none sys/fs/cgroup
for each in run tmp dev; do mount -t tmpfs none $each; done
for each in null zero full random urandom tty; do
    touch dev/$each
    mount --bind /dev/$each dev/$each
done
mkdir dev/net dev/pts dev/shm
mknod -m 666 dev/net/tun c 10 200
# Of the units of this machine, only those of systemd itself are wanted; and nothing of a pyvtep,
# whose directories systemd could not move to their places: overlayfs renames no lower directory.
rm -rf etc/systemd/system var/log/journal var/lib/pyvtep var/cache/pyvtep
mkdir etc/systemd/system
: >etc/fstab
for each in udevd udev-trigger modules-load sysctl logind resolved timesyncd networkd; do
    ln -s /dev/null etc/systemd/system/systemd-$each.service
done
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' >etc/systemd/system/test.target
pivot_root . old
umount -l /old
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=test.target --log-target=console --show-status=no
"""


# A group cannot be removed before the kernel has done with its last process.
_CLEAN_UP = """
mount -t cgroup2 none /mnt && cd /mnt || exit
for each in $(seq 50); do
    find "$1" -depth -type d -exec rmdir {} + && break
    sleep 0.1
done
"""


class Machine:
    """A machine on a host, run by systemd, with this pyvtep installed."""

    def __init__(self, host: Host) -> None:
        self._group = f"pyvtep-test-{host.pid}"
        prefix = Path(sys.prefix)
        site = Path(sysconfig.get_path("purelib")).relative_to(prefix)
        self._process = host.start(
            *("env", f"INSIDE={_INSIDE}", "unshare", "--mount", "--", "sh", "-c", _OUTSIDE, "sh"),
            *(self._group, str(prefix), str(site), str(Path(vtep.__file__).parent)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._pid = ""
        wait_until(self._find_systemd, "systemd to start", _BOOT)
        wait_until(lambda: self._try("systemctl is-active test.target"), "the boot", _BOOT)

    def _find_systemd(self) -> bool:
        assert self._process.poll() is None, self._process.communicate()[0].decode()
        # $$ of the shell was kept by each exec, up to unshare, whose child is process 1 there.
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        found = path.read_text().split()
        self._pid = found[0] if found else ""
        with suppress(OSError):  # A child of the shell may have ended meanwhile.
            return bool(found) and Path(f"/proc/{found[0]}/comm").read_text() == "systemd\n"
        return False

    def _argv(self, command: str) -> list[str]:
        namespaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
        enter = ["nsenter", f"--target={self._pid}", *namespaces, "--root", "--wd", "--"]
        path = "PATH=/opt/pyvtep/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", path, "sh", "-c", command]

    def _try(self, command: str) -> bool:
        return not subprocess.run(self._argv(command), capture_output=True, check=False).returncode

    def run(self, command: str, *, code: int = 0) -> str:
        """Run a command of the shell. Returns: what it prints, errors included."""
        done = subprocess.run(
            self._argv(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        output = done.stdout.decode()
        assert done.returncode == code, f"{command}: {output}\n{self.log()}"
        return output

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        self.run(f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} >{path}")

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run(f"systemctl show --value --property={name} {unit}").strip()

    def log(self) -> str:
        """Return the journal."""
        done = subprocess.run(
            self._argv("journalctl --no-pager --quiet"), capture_output=True, check=False
        )
        return done.stdout.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all processes, and remove their control groups."""
        self._process.kill()
        self._process.communicate()
        subprocess.run(
            ["unshare", "--mount", "--", "sh", "-c", _CLEAN_UP, "sh", self._group],
            capture_output=True,
            check=False,
        )
