"""Privileges of running processes, as /proc shows them, and all that must work with them."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.engines import Engine
from tests.netns.fabric import Frr, Neighbor, bgp_config, kernel_leaf
from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    has_device,
    ping,
    segment,
    wait_for_mtu,
    wait_until,
)
from tests.netns.hosts import pyvtep as run_pyvtep
from tests.netns.test_upgrade import UPGRADED, end, upgrade
from vtep.control import socket_files
from vtep.host.privileges import Capability
from vtep.testing.lab import Host

NOBODY = 65534
READ, ADMIN = 4001, 4002
REPOSITORY = Path(__file__).parents[2]
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
AS_USER = ("--user", f"{NOBODY}:{NOBODY}", "--control", "auto")


def mask(*capabilities: Capability) -> int:
    return sum(1 << each for each in capabilities)


USUAL = mask(Capability.NET_ADMIN, Capability.BPF)


def status(process: int) -> dict[str, str]:
    """Return the fields of a process that all its threads have in common. Fails on a difference."""
    names = ("Uid", "Gid", "Groups", *SETS, "NoNewPrivs")
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        text = (task / "status").read_text()
        fields = dict(re.findall(r"^(\w+):[ \t]*(.*?)\s*$", text, re.MULTILINE))
        found.append({name: fields[name] for name in names})
    assert all(each == found[0] for each in found), found
    return found[0]


def expect(
    vtep: Pyvtep, kept: int, uid: int = 0, gid: int = 0, groups: str = "", pid: int = 0
) -> None:
    """Check the privileges of all threads of a process, or of its successor with a `pid`."""
    pid = pid or vtep.process.pid
    assert status(pid) == {
        "Uid": "\t".join([str(uid)] * 4),
        "Gid": "\t".join([str(gid)] * 4),
        "Groups": groups,
        **dict.fromkeys(SETS, f"{kept:016x}"),
        "NoNewPrivs": "1",
    }
    # Files of a process that is not dumpable belong to root (task_dump_owner() in fs/proc/base.c).
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep pyvtep from making one below /var/cache for another user."""
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))


@pytest.fixture
def tun_for_all(tmp_path: Path) -> Iterator[None]:
    """Give /dev/net/tun the mode that udev gives it, in the mount namespace of the tests."""
    place = tmp_path / "dev"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    os.mknod(place / "tun", stat.S_IFCHR, Path("/dev/net/tun").stat().st_rdev)
    (place / "tun").chmod(0o666)
    subprocess.run(["mount", "--bind", str(place / "tun"), "/dev/net/tun"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", "/dev/net/tun"], check=True)
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that every user can search, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


@pytest.fixture
def start_as_user(start: Start, tun_for_all: None) -> Callable[..., Pyvtep]:
    """Return a function that starts pyvtep by root, to run as the user nobody."""
    del tun_for_all
    for place in (REPOSITORY, Path(sys.executable).parent):
        for each in (place, *place.parents):
            if not each.stat().st_mode & stat.S_IXOTH:
                pytest.skip(f"{each} cannot be searched by other users")

    def starter(host: Host, *arguments: str) -> Pyvtep:
        vtep = start(host, *arguments, *AS_USER)
        vtep.control = Path(f"/run/pyvtep/{NOBODY}/vx0.sock")
        return vtep

    return starter


def as_user(host: Host, uid: int, groups: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a pyvtep command as a user, in the given supplementary groups, to its end."""
    with host.start(
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--inh-caps=-all", "--bounding-set=-all"),
        *(f"--groups={groups}" if groups else "--clear-groups", "--"),
        *(sys.executable, "-m", "vtep", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    ) as child:
        out, err = child.communicate(timeout=60)
        return subprocess.CompletedProcess(words, child.returncode, out, err)


# --- which are kept --------------------------------------------------------------------------


def recreate_underlay(a: Host, b: Host) -> None:
    """Replace the devices between two hosts by new ones, with another MTU."""
    a.run("ip", "link", "del", "eth0")
    a.run(
        *("ip", "link", "add", "eth0", "mtu", "1400", "type", "veth"),
        *("peer", "name", "eth0", "mtu", "1400", "netns", b.pid),
    )
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24")
        host.run("ip", "link", "set", "eth0", "up")


def test_each_capability_is_kept_only_where_it_is_needed(pair: Pair, start: Start) -> None:
    a, b = pair
    bind = Capability.NET_BIND_SERVICE
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    expect(first, USUAL)
    assert first.stop() == 0
    for options, kept in (
        (("--dstport", "789"), USUAL | mask(bind)),
        (("--srcport", "1000", "50000"), USUAL | mask(bind)),
        (("--asn", "65000", "--evpn-neighbor", "192.0.2.2"), USUAL | mask(bind)),
    ):
        vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *options)
        expect(vtep, kept)
        assert vtep.stop() == 0
    del b


def test_a_user_without_capabilities_loses_nothing_else(
    pair: Pair, start: Start, public: Path, tun_for_all: None
) -> None:
    """As docs/getting-started.md#without-root says: root prepares the device."""
    del tun_for_all
    a, b = pair
    a.run("ip", "tuntap", "add", "vx0", "mode", "tap", "user", str(NOBODY))
    a.run("ip", "link", "set", "vx0", "up", "mtu", "1450")
    address(a, "vx0", "10.0.0.1/24")
    public.chmod(0o777)
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    control = ("--control", str(public / "x.sock"))
    vtep = start(a, "--vni", "1", "--remote", "192.0.2.2", "--tap", "vx0", *control, prefix=drop)
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    fields = status(vtep.process.pid)
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert Path(f"/proc/{vtep.process.pid}/environ").stat().st_uid == 0
    # Its own files in /proc still serve it: it knows its network namespace.
    vtep.control = public / "x.sock"
    with vtep.client() as client:
        assert client.call("process.show")["netns"] is not None


# --- another user ----------------------------------------------------------------------------


def test_all_changes_of_the_host_are_followed_as_another_user(
    pair: Pair, start: Start, start_as_user: Callable[..., Pyvtep], public: Path
) -> None:
    a, b = pair
    file = public / "pyvtep.toml"
    text = 'remote = ["192.0.2.2"]\ndev = "eth0"\n[[vni]]\nid = 1\ntap = "vx0"\n'
    file.write_text(f'{text}address = "10.0.0.1/24"\n')
    a.run("ip", "link", "add", "br0", "type", "bridge")
    vtep = start_as_user(a, "--config", str(file))
    expect(vtep, USUAL, NOBODY, NOBODY)
    if "offload tnl unavailable" not in vtep.log:  # The kernel of the host has it.
        assert "tnl" in vtep.run("vni", "show", "--json")
    mac = "02:00:00:00:00:77"
    far = segment(1, "192.0.2.1", "10.0.0.2/24")
    first = start(b, *far, "--mac", mac)
    ping(a, "10.0.0.2")
    assert " 192.0.2.2 " in vtep.run("fdb", "get", mac)

    # The MAC moves to another remote.
    assert first.stop() == 0
    address(b, "eth0", "192.0.2.3/24")
    vtep.run("remote", "add", "192.0.2.3", "--vni", "1")
    second = start(b, *far, "--mac", mac, "--local", "192.0.2.3")
    ping(a, "10.0.0.2")
    assert " 192.0.2.3 " in vtep.run("fdb", "get", mac)
    assert second.stop() == 0

    # The underlay device is created anew, with another MTU.
    recreate_underlay(a, b)
    start(b, *far)
    a.run("ip", "neigh", "flush", "dev", "vx0")  # The MAC in it was that of the second.
    wait_until(lambda: "--dev eth0 was re-created; rebinding" in vtep.log, "the new device")
    ping(a, "10.0.0.2")
    wait_until(lambda: "mtu 1350" in a.run("ip", "link", "show", "vx0"), "the MTU of the TAP")

    # More VNIs, by a command and by a reload; their TAPs join a bridge.
    vtep.run("vni", "add", "2", "--remote", "192.0.2.2", "--dev", "eth0", "--bridge", "br0")
    assert "master br0" in a.run("ip", "link", "show", "vx2")
    vtep.run("vni", "del", "2")
    file.write_text(f'{text}address = "10.0.0.9/24"\n[[vni]]\nid = 3\nbridge = "br0"\n')
    assert "1 added, 1 changed" in vtep.run("reload")
    assert "master br0" in a.run("ip", "link", "show", "vx3")
    ping(a, "10.0.0.2", "-I", "10.0.0.9")

    # Root finds it, and may look behind the scenes and change it; the doctor has no complaint.
    assert "vx3" in run_pyvtep(a, "vni", "show").stdout
    examined = run_pyvtep(a, "doctor", "--vni", "1")
    assert examined.returncode in (0, 1), examined.stderr
    assert "vni 1" in examined.stdout, examined
    expect(vtep, USUAL, NOBODY, NOBODY)
    assert vtep.stop() == 0
    assert not vtep.control.exists()
    assert "vx0" not in a.run("ip", "link", "show")


@pytest.mark.usefixtures("tun_for_all")
def test_a_process_of_another_user_in_the_background(pair: Pair) -> None:
    """It wrote its PID file as that user, and the new process finds it."""
    program = (sys.executable, "-m", "vtep")
    options = ("--user", f"{NOBODY}:{NOBODY}", "--background")
    segment = ("--vni", "1", "--remote", "192.0.2.2", "--tap", "vx0")
    pair[0].run(*program, *segment, *options)
    (socket,) = (live.path for live in socket_files.live() if live.path.stem.startswith("vx0"))
    pid_file = socket.with_suffix(".pid")
    try:
        for _ in range(2):
            found = UPGRADED.match(pair[0].run(*program, "upgrade", "--socket", str(socket)))
            assert found
            assert pid_file.read_text().strip() == found[2]
    finally:
        pair[0].run("kill", pid_file.read_text().strip())
    wait_until(lambda: not socket.exists(), "the end of the new process")


def test_an_upgrade_keeps_privileges_and_what_they_are_for(
    pair: Pair, start: Start, start_as_user: Callable[..., Pyvtep]
) -> None:
    a, b = pair
    vtep = start_as_user(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--dev", "eth0")
    far = segment(1, "192.0.2.1", "10.0.0.2/24")
    mac = "02:00:00:00:00:77"
    first = start(b, *far, "--mac", mac)
    ping(a, "10.0.0.2")
    former = vtep.process.pid
    for _ in range(2):  # The successor of a successor has no less.
        pid = upgrade(vtep)
        assert pid != former
        expect(vtep, USUAL, NOBODY, NOBODY, pid=pid)
        former = pid
    ping(a, "10.0.0.2")

    # A MAC moves, a VNI is added, and an underlay device with another MTU takes the place of eth0.
    assert first.stop() == 0
    address(b, "eth0", "192.0.2.3/24")
    vtep.run("remote", "add", "192.0.2.3", "--vni", "1")
    second = start(b, *far, "--mac", mac, "--local", "192.0.2.3")
    ping(a, "10.0.0.2")
    assert " 192.0.2.3 " in vtep.run("fdb", "get", mac)
    assert second.stop() == 0
    vtep.run(
        "vni", "add", "2", "--remote", "192.0.2.2", "--dev", "eth0", "--address", "10.2.0.1/24"
    )
    assert "10.2.0.1/24" in a.run("ip", "address", "show", "vx2")
    vtep.run("vni", "del", "2")
    assert "vx2" not in a.run("ip", "link", "show")
    recreate_underlay(a, b)
    start(b, *far)
    a.run("ip", "neigh", "flush", "dev", "vx0")  # The MAC in it was that of the second.
    wait_for_mtu(a, 1350)
    ping(a, "10.0.0.2")
    expect(vtep, USUAL, NOBODY, NOBODY, pid=pid)
    end(vtep, pid)
    wait_until(lambda: not has_device(a), "the TAP to be removed")
    assert "Traceback" not in vtep.log


def as_root(host: Host, *words: str, code: int | None = 0) -> str:
    done = run_pyvtep(host, *words)
    assert code in (None, done.returncode), done.stderr
    return done.stdout + done.stderr


def test_capabilities_that_are_inherited_are_kept(
    pair: Pair, start: Start, tun_for_all: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a systemd unit with AmbientCapabilities=, and after an upgrade, with --user again."""
    del tun_for_all
    a, b = pair
    place = Path("/run/pyvtep/unit")
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    place.parent.chmod(0o755)
    os.chown(place, NOBODY, NOBODY)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(place))
    inherited = "-all,+net_admin,+net_raw,+bpf"
    prefix = (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={READ}"),
        *("--inh-caps", inherited, "--ambient-caps", inherited, "--bounding-set", inherited),
    )
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *AS_USER, prefix=prefix)
    fields = status(vtep.process.pid)
    # Without CAP_SETPCAP the bounding set stays as it was: no_new_privs stands in for it.
    bound = USUAL | mask(Capability.NET_RAW)
    assert {fields[name] for name in SETS} == {f"{USUAL:016x}", f"{bound:016x}"}
    assert fields["CapBnd"] == f"{bound:016x}"
    assert (fields["NoNewPrivs"], fields["Groups"]) == ("1", str(READ))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    assert (place / "vx0.sock").is_socket()
    assert "vx0" in run_pyvtep(a, "vni", "show").stdout  # Root finds it.
    assert vtep.stop() == 0


def test_a_docker_network_keeps_the_group_of_the_engines_socket(
    pair: Pair, tun_for_all: None, tmp_path: Path
) -> None:
    del tun_for_all
    a, _ = pair
    with Engine(a) as engine:
        group = engine.shell("stat", "-c", "%g", "/var/run/docker.sock").strip()
        if group == "0":
            pytest.skip("there is no group docker")
        create = ("network", "create", "--subnet", "10.18.0.0/16", "mynetwork")
        engine.docker(*create)
        arguments = ("--vni", "200", "--remote", "192.0.2.2", "--tap", "vx0")
        vtep = Pyvtep(
            *(a, tmp_path, *arguments, "--docker-network", "mynetwork", *AS_USER),
            prefix=engine.enter,
        ).ready()
        kept = USUAL | mask(Capability.NET_RAW)
        expect(vtep, kept, NOBODY, NOBODY, group)
        former = vtep.process.pid
        command = engine.command(sys.executable, "-m", "vtep", "upgrade")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = UPGRADED.match(done.stdout)
        assert found, done.stderr
        assert vtep.wait() == 0
        assert int(found[1]) == former
        expect(vtep, kept, NOBODY, NOBODY, group, pid=int(found[2]))
        # It asks the engine for the bridge of the network that has taken the place of the first.
        on_bridge = f"vx0 is on its bridge {engine.bridge('mynetwork')}"
        wait_until(lambda: vtep.log.count(on_bridge) == 2, "the new process to find the network")
        engine.docker("network", "rm", "mynetwork")
        wait_until(lambda: "network mynetwork is gone" in vtep.log, "the end of the network")
        engine.docker(*create)
        bridge = engine.bridge("mynetwork")
        wait_until(lambda: f"vx0 is on its bridge {bridge}" in vtep.log, "the new bridge")
        assert f"master {bridge}" in a.run("ip", "link", "show", "vx0")
        detach = engine.command(sys.executable, "-m", "vtep", "docker", "detach", "mynetwork")
        done = subprocess.run(detach, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert not has_device(a)
        os.kill(int(found[2]), signal.SIGTERM)
        wait_until(lambda: "ended: " in vtep.log, "the end of the new process")
        assert "Traceback" not in vtep.log


def test_programs_that_it_runs_have_the_reduced_sets() -> None:
    """As the compiler of the fast path and the successor of an upgrade: exec keeps the sets."""
    code = f"""
import subprocess, sys
from vtep.control import socket_files
from vtep.host.privileges import Capability, drop, find_user
drop(frozenset([Capability.NET_ADMIN]), find_user("{NOBODY}:{NOBODY}"), [{READ}])
subprocess.run(["cat", "/proc/self/status"], check=True)
drop(frozenset([Capability.NET_ADMIN]), find_user("{NOBODY}:{NOBODY}"))  # As the successor does.
try:
    drop(frozenset(), find_user("0:0"))
except Exception as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    for name in SETS:
        assert f"{name}:\t{mask(Capability.NET_ADMIN):016x}\n" in said
    assert "NoNewPrivs:\t1\n" in said
    assert f"Groups:\t{READ} \n" in said
    assert "--user root: only root can become another user" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--user", "no-such-user"), "--user no-such-user: there is no user no-such-user"),
        (("--user", "70000"), "--user 70000: user ID 70000 has no name"),
        (("--control-group", "no-such"), "--control-group no-such: there is no group no-such"),
        ((*AS_USER, "--state", "/root/pyvtep.db"), "--state /root/pyvtep.db: "),
        ((*AS_USER[:2], "--control", "/root/x.sock"), "--control /root: Permission denied"),
    ],
)
def test_refused(pair: Pair, tun_for_all: None, arguments: tuple[str, ...], line: str) -> None:
    del tun_for_all
    done = run_pyvtep(pair[0], "--vni", "1", "--remote", "192.0.2.2", "--no-fast-path", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"pyvtep: error: {line}")


@contextmanager
def private_copy(place: Path) -> Iterator[Path]:
    """Mount the repository below a directory of mode 0700 that belongs to an ordinary user."""
    home = place / "home"
    (home / "clone").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(REPOSITORY), str(home / "clone")], check=True)
    os.chown(home, NOBODY, NOBODY)
    home.chmod(0o700)
    try:
        yield home / "clone"
    finally:
        subprocess.run(["umount", "-l", str(home / "clone")], check=True)


def test_root_can_still_read_a_program_in_a_private_directory(pair: Pair, public: Path) -> None:
    a, _ = pair
    with private_copy(public) as clone, (public / "log").open("w") as log:
        python = clone / Path(sys.executable).relative_to(REPOSITORY)
        command = (str(python), "-m", "vtep", "--vni", "1", "--remote", "192.0.2.2", "--tap", "vx0")
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        options = ("--no-fast-path", "--control", "none")
        process = a.start(*command, *options, stderr=log, cwd="/", env=environment)
        wait_until(lambda: "UDP port" in (public / "log").read_text(), "pyvtep to be up")
        kept = USUAL | mask(Capability.DAC_READ_SEARCH)
        assert status(process.pid)["CapPrm"] == f"{kept:016x}"
        process.terminate()
        assert process.wait(30) == 0
        refused = a.start(
            *(*command, *options, "--user", "1:1"),
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=environment,
        )
        _, said = refused.communicate(timeout=60)
        assert refused.returncode == 1
        assert re.search(r"--user \w+: cannot read /.*/clone/.*, where pyvtep is installed", said)


# --- groups of the control socket ------------------------------------------------------------


def test_groups_may_read_or_change(pair: Pair, start: Start) -> None:
    a, _ = pair
    groups = ("--control-group", str(READ), "--control-admin-group", str(ADMIN))
    vtep = start(a, *segment(1, "192.0.2.2"), "--control", "auto", *groups)
    path = Path("/run/pyvtep/vx0.sock")
    vtep.control = path
    add = ("fdb", "add", "02:00:00:00:00:01", "dst", "192.0.2.2")

    stranger = as_user(a, 5000, "", "fdb", "show")
    assert stranger.returncode == 1
    assert "run this with sudo, or as a member of the --control-group" in stranger.stderr
    denied = as_user(a, 5000, "", "fdb", "show", "--socket", str(path))
    assert f"--socket {path}: permission denied" in denied.stderr

    assert as_user(a, 5000, str(READ), "fdb", "show").returncode == 0
    refused = as_user(a, 5000, str(READ), *add)
    assert refused.returncode == 1
    line = f"members of group {READ} may only read; be a member of group {ADMIN}"
    assert refused.stderr == f"pyvtep: error: fdb.add: permission denied: {line}\n"

    assert as_user(a, 5000, str(ADMIN), *add).returncode == 0
    assert "02:00:00:00:00:01" in as_user(a, 5000, str(READ), "fdb", "show").stdout

    # A file mode that was loosened by hand lets no other user in: the server checks the peer.
    path.chmod(0o666)
    denied = as_user(a, 5000, "", "fdb", "show", "--socket", str(path))
    assert denied.returncode == 1
    assert f"be a member of group {READ} or {ADMIN}" in denied.stderr
    assert vtep.stop() == 0
    assert not path.exists()


def test_no_other_user_can_lock_the_directory_of_sockets(pair: Pair, start: Start) -> None:
    """All users may read it, so a lock on the directory itself would be anyone's."""
    a, _ = pair
    first = start(a, *segment(1, "192.0.2.2"), "--control", "auto", "--control-group", str(READ))
    assert first.stop() == 0
    assert stat.S_IMODE(Path("/run/pyvtep").stat().st_mode) == 0o755
    hostile = a.start(
        *("setpriv", "--reuid=5000", "--regid=5000", "--clear-groups", "--", "flock"),
        *("/run/pyvtep", "sh", "-c", "echo locked; exec cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hostile.stdout is not None
    assert hostile.stdout.readline() == b"locked\n"
    second = start(a, *segment(1, "192.0.2.2"), "--control", "auto")
    assert "cannot open a control socket" not in second.log
    assert Path("/run/pyvtep/vx0.sock").is_socket()
    lock = ("flock", "--nonblock", "/run/pyvtep/.lock", "true")
    refused = a.run("setpriv", "--reuid=5000", "--clear-groups", "--", *lock, check=False)
    assert refused == ""
    assert second.stop() == 0
    shutil.rmtree("/run/pyvtep/.lock", ignore_errors=True)


# --- the EVPN speaker ------------------------------------------------------------------------


def test_the_speaker_has_the_privileges_that_it_needs(
    pair: Pair, start_as_user: Callable[..., Pyvtep], tmp_path: Path
) -> None:
    """As another user, it listens on port 179, signs its segments, and writes to the bridge."""
    a, b = pair
    kernel_leaf(b, 1, "192.0.2.2", "02:00:00:00:00:0b", "10.0.0.2/24")
    neighbor = Neighbor("192.0.2.1", 65000, ("password secret", "passive"))
    Frr(
        b,
        tmp_path,
        bgp_config(
            65000, "192.0.2.2", [neighbor], evpn_lines=("advertise-all-vni", "advertise-svi-ip")
        ),
    )
    a.run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
    a.run("ip", "link", "set", "br0", "up")
    address(a, "br0", "10.0.0.1/24")
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    vtep = start_as_user(
        *(a, "--vni", "1", "--tap", "vx0", "--bridge", "br0", "--local", "192.0.2.1"),
        *("--asn", "65000", "--evpn-neighbor", "192.0.2.2"),
        *("--evpn-password-file", str(secret)),
    )
    ping(a, "10.0.0.2")
    with vtep.client() as client:
        evpn = client.status()["evpn"]
        assert evpn is not None
        assert evpn["speaker"]["pid"] is not None
    kept = mask(Capability.NET_ADMIN, Capability.NET_BIND_SERVICE)
    expect(vtep, USUAL | kept, NOBODY, NOBODY)
    pid = evpn["speaker"]["pid"]
    assert status(pid) == {
        "Uid": "\t".join([str(NOBODY)] * 4),
        "Gid": "\t".join([str(NOBODY)] * 4),
        "Groups": "",
        **dict.fromkeys(SETS, f"{kept:016x}"),
        # Without CAP_SETPCAP, it keeps the bounding set of the daemon.
        "CapBnd": f"{USUAL | kept:016x}",
        "NoNewPrivs": "1",
    }
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
    assert "192.0.2.1:179" in a.run("ss", "-Hltn", "sport", "=", ":179")
    assert "02:00:00:00:00:0b dev vx0" in a.run("bridge", "fdb", "show", "br", "br0")
    as_nobody = as_user(a, NOBODY, "", "evpn", "show", "sessions", "--json")
    assert '"password": true' in as_nobody.stdout, as_nobody.stderr
