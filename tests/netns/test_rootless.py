"""TAPs in network namespaces of users without privileges, from beginning to end as such a user."""

import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.netns.hosts import wait_until
from tests.netns.sandboxes import Sandbox, busybox
from tests.netns.test_documentation import commands, hosts
from vtep.errors import VtepError
from vtep.testing.lab import Host

__all__ = ["hosts"]

UID = 4711

_SET_UP = f"""
echo user:x:{UID}:{UID}::/run/home:/bin/sh >>/etc/passwd
echo user:x:{UID}: >>/etc/group
echo user:1000000:65536 | tee -a /etc/subuid >>/etc/subgid
mkdir -p /run/home/bin /run/user/{UID}
printf '[containers]\\ncgroups = "disabled"\\n' >/run/home/containers.conf
printf '#!/bin/sh\\nexec {sys.executable} -m vtep "$@"\\n' >/run/home/bin/pyvtep
chmod 755 /run/home/bin/pyvtep
mount -t tmpfs none /dev/net
mknod -m 666 /dev/net/tun c 10 200
"""


class User:
    """A user of a host, who has no privileges there."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        sandbox.run(f"{_SET_UP}chown -R {UID}:{UID} /run/home /run/user/{UID}")
        environment = {
            "HOME": "/run/home",
            "XDG_RUNTIME_DIR": f"/run/user/{UID}",
            "CONTAINERS_CONF": "/run/home/containers.conf",
            "PATH": "/run/home/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "NUMBA_DISABLE_JIT": "1",  # To compile takes half a minute of processor time.
        }
        self._prefix = shlex.join(
            [
                *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
                *("--no-new-privs",),
                *("env", "-i", *(f"{name}={value}" for name, value in environment.items())),
                *("sh", "-ec"),
            ]
        )
        self._privileged = self._prefix.replace(" --no-new-privs", "")

    def run(self, command: str) -> str:
        """Run a command of the shell. Raises: VtepError if it fails."""
        # podman gains privileges by newuidmap, which is setuid.
        prefix = self._privileged if "podman" in command else self._prefix
        return self.sandbox.run(f"{prefix} {shlex.quote('cd; ' + command)}")

    def fails(self, command: str) -> str:
        """Run a command that fails. Returns: its whole message."""
        return self.run(f"! {{ {command}; }} 2>&1")


@pytest.fixture
def users(hosts: dict[str, Host]) -> Iterator[dict[str, User]]:
    """Return a user of each host, by its prompt."""
    with ExitStack() as stack:
        yield {prompt: User(stack.enter_context(Sandbox(host))) for prompt, host in hosts.items()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return the archive of a small image."""
    busybox(tmp_path / "root", "sh", "sleep", "ip", "ping")
    with tarfile.open(tmp_path / "image.tar", "w") as archive:
        archive.add(tmp_path / "root", "")
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    return tmp_path / "image.tar"


def test_users_connect_their_containers(users: dict[str, User], image: Path) -> None:
    a, b = users["host-106"], users["host-107"]
    for user in users.values():
        user.sandbox.run(f"install -m 644 {image} /run/home/image.tar")
        user.run("podman import --quiet image.tar docker.io/library/busybox")
    shown = ""
    for prompt, command, _ in commands("docs/rootless.md", "Containers of two users"):
        if " ping " in command:
            wait_until(lambda: _succeeds(users[prompt], command), command)  # noqa: B023
        else:
            shown = users[prompt].run(command)
    assert shown.startswith("upgraded: ")
    assert "inet 10.0.8.1/24" in a.run("podman exec mail ip address show dev vx8")
    # After the upgrade, changes in the namespace are still followed and made.
    assert "ttl=" in b.run("podman exec client ping -c 1 10.0.0.1")
    a.run("pyvtep set --vni 8 --mtu 1300 --address 10.0.8.3/24")
    shown = a.run("podman exec mail ip address show dev vx8")
    assert "mtu 1300" in shown
    assert "inet 10.0.8.3/24" in shown
    status = a.run("pyvtep status || true")
    assert "vni 7  vx7  up" in status
    assert "address 10.0.8.3/24; mtu 1300;" in status
    # The end of a container is that of its VNI, and of pyvtep with the last one.
    a.run("podman kill mail")
    wait_until(lambda: "vni 8  vx8  missing" in a.run("pyvtep status || true"), "the end of VNI 8")
    assert "of --netns has ended, and its network namespace with it" in a.run("cat pyvtep.log")
    assert "ttl=" in b.run("podman exec client ping -c 1 10.0.0.1")
    b.run("podman kill client")
    wait_until(lambda: "no running pyvtep" in b.fails("pyvtep status"), "the end of pyvtep")


def _succeeds(user: User, command: str) -> bool:
    try:
        user.run(command)
    except VtepError:
        return False
    return True


OPEN_TAP = """
import fcntl, os, socket, struct, subprocess, sys

if sys.argv[1] == "inside":
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap9", 0x5002))
    with socket.socket(fileno=int(sys.argv[2])) as parent:
        socket.send_fds(parent, [b"x"], [fd])
else:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    enter = ["unshare", "--user", "--map-root-user", "--net"]
    command = [*enter, sys.executable, __file__, "inside", str(number)]
    subprocess.run(command, pass_fds=[number], check=True)
    _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(fd, True)
    os.execvp("pyvtep", ["pyvtep", "--tap-fd", str(fd), *sys.argv[1:]])
"""
"""Opens a TAP in a user namespace, and starts pyvtep with it, on the host."""


def test_namespaces_of_unshare(users: dict[str, User]) -> None:
    a = users["host-106"]
    pid, other = (
        int(a.run("unshare --user --map-root-user --net sleep 1000 >/dev/null 2>&1 & echo $!"))
        for _ in range(2)
    )
    inside = f"nsenter --target {pid} --user --net --preserve-credentials"
    wait_until(lambda: _succeeds(a, f"{inside} ip link add br7 type bridge"), "the namespace")
    segment = "--vni 7 --remote 172.31.0.107 --no-fast-path --background --log log"
    # The underlay is another network, even if names and addresses are the same.
    a.run(f"pyvtep {segment} --netns {pid} --tap eth0 --dev eth0 --bridge br7")
    assert "master br7" in a.run(f"{inside} ip link show eth0")
    assert "bridge br7; mtu 1450 (tap 1500); underlay eth0 mtu 1500" in a.run(
        "pyvtep status || true"
    )
    a.run(f"{inside} ip link set eth0 down")
    wait_until(
        lambda: "vni 7  eth0  down" in a.run("pyvtep status || true"), "the state of the TAP"
    )
    doctor = a.run("pyvtep doctor || true")
    assert "eth0 is down" in doctor
    assert f"nsenter --target {pid}" in doctor
    # Mistakes change nothing, and name the remedy.
    for options, message in (
        ("--netns 4194304", "there is no such process (any more)"),
        ("--netns 1", "may not see the namespaces of this process"),
        ("--netns /etc/passwd", "is no network namespace"),
        ("--netns /run/netns/x", "there is no such file"),
        ("--tap-fd 3", "pyvtep takes descriptors at its start only"),
        (f"--netns {other} --tap lo", "is not a free TAP; choose another with --tap"),
    ):
        failure = a.fails(f"pyvtep vni add 8 --dev eth0 {options}")
        assert message in failure, (options, failure)
    a.run(f"pyvtep vni add 8 --dev eth0 --netns {other}")
    a.run("pyvtep vni del 8")
    assert "vx8" not in a.run(
        f"nsenter --target {other} --user --net --preserve-credentials ip link"
    )
    a.run(f"kill {pid}")
    wait_until(lambda: "no running pyvtep" in a.fails("pyvtep status"), "the end of pyvtep")


def test_a_tap_that_is_open_already(users: dict[str, User]) -> None:
    a = users["host-106"]
    a.sandbox.run(f"cat >/run/home/open.py <<'END'\n{OPEN_TAP}\nEND")
    segment = "--vni 9 --remote 172.31.0.107 --address 10.0.0.1/24 --no-fast-path"
    a.run(f"{sys.executable} open.py {segment} --background --log log")
    # The namespace has no process any more: pyvtep has entered it by the TAP.
    for command in ("true", "pyvtep upgrade"):
        a.run(command)
        status = a.run("pyvtep status || true")
        assert "vni 9  tap9  up" in status
        assert "address 10.0.0.1/24; mtu 1450;" in status
    a.run("pyvtep set --mtu 1300 --address 10.0.0.2/24")
    assert "address 10.0.0.2/24; mtu 1300;" in a.run("pyvtep status || true")


OPEN_TAP_OF_ROOT = """
import fcntl, os, struct, subprocess, sys

flags, there, *command = sys.argv[1:]
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tt0", int(flags, 16)))
if there:
    subprocess.run(["ip", "link", "set", "tt0", "netns", there], check=True)
os.set_inheritable(fd, True)
os.execvp(command[0], [*command, "--tap-fd", str(fd)])
"""
"""Opens a TAP, moves it into the namespace of a process, and starts a command with it."""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that all users can use, as they cannot those of pytest."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_a_tap_of_root_for_a_user(pair: tuple[Host, Host], open_folder: Path) -> None:
    """Without rights on the TAP's namespace, pyvtep leaves the TAP's setup to its owner."""
    a, _ = pair
    (open_folder / "open.py").write_text(OPEN_TAP_OF_ROOT)
    opener = (sys.executable, str(open_folder / "open.py"))
    control, pid_file, log = (open_folder / name for name in ("control", "pid", "log"))
    pyvtep = (
        *(sys.executable, "-m", "vtep", "--vni", "1", "--remote", "192.0.2.2", "--no-fast-path"),
        *("--background", "--control", str(control)),
        *("--pid-file", str(pid_file), "--log", str(log)),
    )
    user = ("setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all")
    # TUNGETIFF reports IFF_NO_PI of this one as well.
    failure = a.run("sh", "-c", '! "$@" 2>&1', "sh", *opener, "4002", "", *pyvtep)
    assert "is of another kind; open it with IFF_TAP, IFF_NO_PI" in failure
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        for there in ("", str(holder.pid)):
            a.run(*opener, "5002", there, *user, *pyvtep)
            assert "no CAP_NET_ADMIN in the network namespace of the TAP" in log.read_text()
            assert "vni 1 on tt0" in log.read_text()
            a.run("kill", pid_file.read_text().strip())
            wait_until(lambda: not pid_file.exists(), "the end of pyvtep")
            log.unlink()


def test_a_namespace_of_root(pair: tuple[Host, Host], tmp_path: Path) -> None:
    """Root enters it before it gives up the capability for that."""
    a, _ = pair
    with subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"\n"
        options = ("--vni", "7", "--remote", "192.0.2.2", "--netns", str(holder.pid))
        control = ("--control", str(tmp_path / "control"), "--no-fast-path", "--background")
        log = ("--log", str(tmp_path / "log"), "--pid-file", str(tmp_path / "pid"))
        a.run(sys.executable, "-m", "vtep", *options, *control, *log)
        named = ("--socket", str(tmp_path / "control"))
        links = subprocess.run(
            ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "link", "show", "vx7"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert "mtu 1450" in links
        for upgrades in (True, False):
            with pytest.raises(VtepError, match="pyvtep gives up at its start"):
                a.run(
                    *(sys.executable, "-m", "vtep", "vni", "add", "8", "--remote", "192.0.2.2"),
                    *("--netns", str(holder.pid), *named),
                )
            if upgrades:
                assert "upgraded" in a.run(sys.executable, "-m", "vtep", "upgrade", *named)
        assert "vx8" not in a.run("ip", "link", "show")
        holder.stdin.close()
    wait_until(lambda: not (tmp_path / "pid").exists(), "the end of pyvtep")
    assert f"the process {holder.pid} of --netns has ended" in (tmp_path / "log").read_text()
