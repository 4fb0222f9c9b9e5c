"""Hosts on which daemons run that take the whole machine for theirs, such as libvirtd and lxd.

Besides the network of its host, a sandbox has mount, PID and control group namespaces. /run is
empty there, and so are the directories that the test names. Changes of /etc, /root and /var are not
seen outside. The first process in the PID namespace ends with the test process, however that dies;
then the kernel kills all others and drops the mounts. A shell outside removes the rest from the
control group tree.
"""

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vtep.testing.lab import Host

_TIMEOUT = 120.0
"""Seconds that a command, or the end of all processes, may take on a busy machine."""

# The arguments are the private directories. The shell leaves the group before it removes that.
_OUTSIDE = """
exec 3<&0
mount -t cgroup2 none /sys/fs/cgroup && cd /sys/fs/cgroup || exit
group=$(mktemp -d pyvtep-test-XXXXXX) || exit
echo $$ >$group/cgroup.procs
unshare --pid --mount-proc --cgroup --ipc --fork -- sh -ec "$INSIDE" sh "$@" <&3 3<&- & echo $!
echo $$ >cgroup.procs
exec 3<&-
wait $!
for each in $(seq 50); do
    find $group -depth -type d -exec rmdir {} + && break
    sleep 0.1  # until the kernel has done with the last process
done
"""

# /sys shows the network devices of the namespace in which it was mounted. Since process 1 ignores
# SIGCHLD, the kernel removes orphans that end; libvirtd waits until they are gone.
_INSIDE = """
cd /
mount -t sysfs none /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mkdir /run/lock
for each in etc root var; do
    mkdir -p /run/upper/$each /run/work/$each
    mount -t overlay none /$each \\
        -o lowerdir=/$each,upperdir=/run/upper/$each,workdir=/run/work/$each
done
for each in "$@"; do
    mkdir -p "$each"
    mount -t tmpfs none "$each"
done
exec env --ignore-signal=CHLD cat
"""


class Sandbox:
    """A host with empty directories in a tmpfs, and the commands that run there."""

    def __init__(self, host: Host, *directories: str) -> None:
        self.host = host
        # Not host.start(), which kills it with the test process: it has to clean up afterwards.
        enter = ["nsenter", f"--net={host.namespace}", "--", "unshare", "--mount", "--"]
        self._shell = subprocess.Popen(
            ["env", f"INSIDE={_INSIDE}", *enter, "sh", "-c", _OUTSIDE, "sh", *directories],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        own = f"/proc/{self._shell.stdout.readline().decode().strip()}/ns"
        self._shell.stdin.write(b"\n")
        self._shell.stdin.flush()
        assert self._shell.stdout.readline() == b"\n", "no privilege to make namespaces"
        self._enter = (
            *("nsenter", f"--mount={own}/mnt", f"--pid={own}/pid_for_children"),
            *(f"--cgroup={own}/cgroup", "--"),
        )

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a command of the shell. Returns: its output. Raises: VtepError if it fails."""
        words = (*self._enter, "sh", "-ec", command)
        return self.host.run(*words, check=check, timeout=_TIMEOUT)

    def start(self, *command: str, **popen: Any) -> "subprocess.Popen[Any]":
        """Start a daemon, which ends with the sandbox."""
        return self.host.start(*self._enter, *command, **popen)

    def close(self) -> None:
        """End all processes, and remove the namespaces and control groups."""
        self._shell.communicate(timeout=_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def busybox(root: Path, *applets: str) -> None:
    """Make the file system of a container: busybox under the names of applets."""
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in applets:
        (root / "bin" / applet).symlink_to("busybox")
