"""Real Docker engines on hosts that are namespaces, which start in half a second.

Besides the network of its host, an engine has a machine of its own: PID and mount namespaces, where
the socket, state and images of the engine are at their usual places in a tmpfs. The first process
in the PID namespace ends with the test process, however that dies; then the kernel kills all others
and drops the mounts. A shell outside removes the rest from the control group tree.
"""

import subprocess
import tarfile
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from types import TracebackType
from typing import Self

from tests.netns.hosts import wait_until
from vtep.testing.lab import Host

_START = 60.0
"""Seconds that an engine may take to come up on a busy machine."""

# $1 is the control group of the engine. The printed PID is valid outside of the PID namespace.
_MACHINE = """
exec 3<&0
mount -t cgroup2 none /sys/fs/cgroup && mount -t tmpfs none /run || exit
unshare --pid --mount-proc --fork -- cat <&3 3<&- & echo $!
exec 3<&-
wait $!
find "/sys/fs/cgroup$1" -depth -type d -exec rmdir {} \\; 2>/dev/null
"""

_APPLETS = ("cat", "dd", "ip", "nc", "netstat", "ping", "sh", "sha256sum", "sleep", "tail")


class Engine:
    """A Docker engine on a host, with the image busybox.

    `url` names its socket for clients outside of the mount namespace.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._group = f"/pyvtep-test-{host.pid}"
        # Not host.start(), which kills it with the test process: it has to clean up afterwards.
        enter = ["nsenter", f"--net={host.namespace}", "--", "unshare", "--mount", "--"]
        self._machine = subprocess.Popen(
            [*enter, "sh", "-c", _MACHINE, "sh", self._group],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._machine.stdin is not None
        assert self._machine.stdout is not None
        pid = self._machine.stdout.readline().decode().strip()
        self._machine.stdin.write(b"\n")
        self._machine.stdin.flush()
        assert self._machine.stdout.readline() == b"\n", "no privilege to make namespaces"
        self.enter = ("nsenter", f"--mount=/proc/{self._machine.pid}/ns/mnt", "--")
        """A command prefix that enters the mount namespace of the engine."""
        inside = (f"--mount=/proc/{pid}/ns/mnt", f"--pid=/proc/{pid}/ns/pid_for_children")
        self._inside = ("nsenter", *inside, "--")
        self.url = f"unix:///proc/{self._machine.pid}/root/run/docker.sock"
        self._log = TemporaryFile("w+")  # noqa: SIM115  closed with the engine
        self.start()
        with NamedTemporaryFile(suffix=".tar") as image:
            _rootfs(Path(image.name))
            self.docker("import", image.name, "busybox")

    def start(self) -> None:
        """Start the engine and wait until it responds."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the engine."""
        self._process = self.host.start(
            *self._inside,
            *("dockerd", "--storage-driver=overlay2", "--data-root=/run/docker-data"),
            f"--cgroup-parent={self._group}",
            stdout=self._log,
            stderr=self._log,
        )

    @property
    def log(self) -> str:
        """Everything that the engine has written so far."""
        return Path(f"/proc/self/fd/{self._log.fileno()}").read_text()

    def wait(self) -> None:
        """Wait until the engine responds."""

        def answers() -> bool:
            if self._process.poll() is not None:
                raise AssertionError(self.log)
            return bool(self.docker("version", "--format", "{{.Server.Version}}", check=False))

        wait_until(answers, "the Docker engine", _START)

    def stop(self) -> None:
        """Stop the engine and its containers, as `systemctl stop docker` does."""
        self._host_run("sh", "-c", "kill $(cat /run/docker.pid)")
        self._process.wait(_START)

    def docker(self, *command: str, check: bool = True) -> str:
        """Run a docker command on the host. Returns: its output without the final newline."""
        return self._host_run("docker", *command, check=check).strip()

    def shell(self, *command: str) -> str:
        """Run a command on the host, where `docker` is this engine. Returns: its output."""
        return self.host.run(*self._inside, *command, timeout=300)

    def logs(self, container: str) -> str:
        """Return all that a container has written, also to standard error."""
        return self.shell("sh", "-c", 'docker logs "$1" 2>&1', "sh", container)

    def _host_run(self, *command: str, check: bool = True) -> str:
        return self.host.run(*self._inside, *command, check=check)

    def container(self, name: str, network: str, *options: str) -> None:
        """Start a container that sleeps, and that stops without delay."""
        self.docker(
            *("run", "--detach", "--name", name, "--net", network, "--stop-signal", "KILL"),
            *(*options, "busybox", "sleep", "1000"),
        )

    def bridge(self, network: str) -> str:
        """Return the name of the bridge of a network."""
        return f"br-{self.docker('network', 'ls', '--quiet', '--filter', f'name=^{network}$')}"

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs a command on the host."""
        return ["nsenter", f"--net={self.host.namespace}", *self.enter[1:], *command]

    def reaches(self, container: str, destination: str, *options: str) -> bool:
        """Send one ping from a container. Returns: whether it is answered within a second."""
        said = self.docker("exec", container, *_PING, *options, destination, check=False)
        return "1 packets received" in said

    def clear(self) -> None:
        """Remove all containers and networks."""
        containers = self.docker("ps", "--all", "--quiet").split()
        if containers:
            self.docker("rm", "--force", *containers)
        networks = self.docker("network", "ls", "--filter", "type=custom", "--quiet").split()
        if networks:
            self.docker("network", "rm", *networks)

    def close(self) -> None:
        """Stop the engine and remove its namespaces and control groups."""
        # The namespaces live until the standard input of their first process is closed.
        self._machine.communicate(timeout=_START)
        self._process.wait(_START)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_PING = ("ping", "-c", "1", "-W", "1")


def _rootfs(path: Path) -> None:
    """Write the file system of an image: busybox under the names that tests use."""
    with tarfile.open(path, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
