"""TAPs in other network namespaces: their life in memory, and the errors of the kernel's."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from contextlib import closing

import attrs
import pytest

from vtep import Config, Vtep, VtepError
from vtep.control.status import status
from vtep.daemon.tap_namespace import namespace_of, prepare, take_tap_fds
from vtep.host.devices import device_index, index_by
from vtep.io import namespace_child as child
from vtep.io.inherited import Inherited, tap_role
from vtep.io.namespace import has_ended, open_namespace
from vtep.io.namespace_errors import Surroundings, explain
from vtep.testing import MemoryUnderlay
from vtep.testing.memory_network import MemoryNetwork

BASE = Config(vni=1, remote="192.0.2.2", tap="vx0", netns="7", bridge="br0")
ALICE = Surroundings(uid=1000, owner_uid=1000)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  nothing could set an event
            await asyncio.sleep(0.001)


def test_the_life_of_a_tap_in_another_namespace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        with closing(MemoryUnderlay()) as underlay:
            host = underlay.add_host("192.0.2.1")
            network = MemoryNetwork(host)
            there = network.namespaces["7"] = MemoryNetwork(host)
            other = network.namespaces["8"] = MemoryNetwork(host)
            there.add_device("br0", kind="bridge")
            # A device of the same name here is another one.
            network.add_device("vx0", mtu=9000)
            second = Config(vni=2, remote="192.0.2.2")
            async with Vtep(BASE, second, network=network, sockets=host) as vtep:
                port = vtep.ports[1]
                device = there.devices["vx0"]
                assert "vx0" in there.taps
                assert (device.mtu, device.is_up) == (1500, True)
                assert network.devices["vx0"].mtu == 9000
                assert not port.is_here
                await until(lambda: vtep.bridge_of(port))
                there.set_link("vx0", master="")
                await until(lambda: device.master)  # It has joined the bridge again.
                there.queue_drops["vx0"] = 3
                assert port.counters()["drop_tap_queue_full"] == 3
                # A transaction that fails leaves nothing in either namespace.
                there.refusals["vx0"] = "no"
                with pytest.raises(VtepError, match="vni 1: --tap vx0: no"):
                    await vtep.change(attrs.evolve(BASE, mtu=1300))
                assert there.devices["vx0"].mtu == 1500
                with pytest.raises(VtepError, match="--netns 9: there is no such process"):
                    await vtep.add(Config(vni=3, netns="9"))
                assert 3 not in vtep.ports
                # Another namespace is another TAP.
                await vtep.change(attrs.evolve(BASE, netns="8"))
                assert "vx0" not in there.taps
                assert "vx0" in other.taps
                # The VNI takes its TAP along if another one gets it.
                await vtep.reload([attrs.evolve(BASE, vni=5, netns="8"), second])
                assert vtep.ports[5].place.namespace is not None
                # The namespace ends, and with it the VNI.
                other.end = "the process 8 of --netns has ended"
                vtep.ports[5].on_link_changed()
                assert vtep.ports.keys() == {2}
                assert vtep.lost.keys() == {5}
                assert "vni 5 has ended: the process 8 of --netns has ended" in caplog.text
                shown = status(vtep, [*vtep.ports.values(), *vtep.lost.values()]).whole()
                assert [each["netns"] for each in shown["segments"]] == [None, "8"]
                assert "its network namespace --netns 8 has ended" in shown["problems"][0]["text"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("step", "number", "facts", "text"),
    [
        (child.NET, errno.EPERM, Surroundings(0, None), "needs CAP_SYS_ADMIN, which pyvtep gives"),
        (
            child.NET,
            errno.EPERM,
            Surroundings(1000, None),
            "may not enter it; run pyvtep as root",
        ),
        (child.USER, errno.EPERM, Surroundings(1000, 1001), "it belongs to user 1001; run pyvtep"),
        (child.USER, errno.EPERM, ALICE, "set RestrictNamespaces=no"),
        (child.NET, errno.EINVAL, ALICE, "cannot enter it: Invalid argument"),
        (
            child.USER,
            errno.EACCES,
            attrs.evolve(ALICE, profile="pyvtep (enforce)"),
            "the AppArmor profile pyvtep confines pyvtep",
        ),
        (child.DEVICE, errno.ENOENT, ALICE, "load the kernel module (modprobe tun)"),
        (child.DEVICE, errno.ENODEV, ALICE, "no TUN/TAP driver; modprobe tun"),
        (child.DEVICE, errno.EACCES, ALICE, "user 1000; as root: chmod 666 /dev/net/tun"),
        (child.DEVICE, errno.EPERM, ALICE, "DeviceAllow=/dev/net/tun rw"),
        (child.DEVICE, errno.EMFILE, ALICE, "Too many open files"),
        (child.TAP, errno.EPERM, ALICE, "no privilege to create vx7 in it: run pyvtep as the user"),
        (
            child.TAP,
            errno.EPERM,
            attrs.evolve(ALICE, restricts_user_namespaces=True),
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (child.TAP, errno.EBUSY, ALICE, "another process has vx7 in it"),
        (child.TAP, errno.EINVAL, ALICE, "is not a free TAP"),
        (child.TAP, errno.ENOMEM, ALICE, "cannot create a TAP in it: Cannot allocate memory"),
        (child.SOCKETS, errno.EMFILE, ALICE, "cannot open sockets in it: Too many open files"),
    ],
)
def test_errors_name_the_remedy(step: str, number: int, facts: Surroundings, text: str) -> None:
    assert text in explain(step, number, "vx7", facts)


def test_descriptors_that_are_no_tap_are_refused() -> None:
    inherited = Inherited()
    reader, writer = os.pipe()
    os.close(writer)
    try:
        for number, text in ((writer, "is not open"), (reader, "is no TAP that is attached")):
            with pytest.raises(VtepError, match=f"--tap-fd {number}: {text}"):
                take_tap_fds([Config(vni=1, tap_fd=number)], inherited)
    finally:
        os.close(reader)
    # Later, a number may be that of any other descriptor.
    with pytest.raises(VtepError, match="takes descriptors at its start only"):
        prepare(Config(vni=1, tap_fd=3), inherited)
    assert inherited.get(tap_role("vx1")) is None


def test_a_namespace_that_was_not_entered_is_no_reason_for_a_tap_here() -> None:
    inherited = Inherited()
    assert namespace_of(Config(vni=1), inherited) is None
    with pytest.raises(VtepError, match="--netns 7: it was not entered"):
        namespace_of(BASE, inherited)


def test_the_end_of_a_namespace_is_noticed(tmp_path: object) -> None:
    fd = open_namespace(str(os.getpid()))
    try:
        assert not has_ended(fd, str(os.getpid()))
        assert not has_ended(fd, "/proc/self/ns/net")
        assert has_ended(fd, "/proc/self/ns/user")
        assert has_ended(fd, f"{tmp_path}/none")
        assert has_ended(fd, "4194304")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("netns", "text"),
    [
        ("4194304", "there is no such process"),
        ("/nowhere", "there is no such file"),
        ("/proc/self/ns/user", "is no network namespace"),
        ("/dev/null", "is no network namespace"),
        ("/", "is no network namespace"),
    ],
)
def test_what_is_no_namespace_is_refused(netns: str, text: str) -> None:
    with pytest.raises(VtepError, match=f"--netns {netns}: {text}"):
        open_namespace(netns)


def test_an_index_by_a_socket_is_that_of_its_namespace() -> None:
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match=r"\w"):
            index_by(reader, "lo")
    finally:
        os.close(reader)
        os.close(writer)
    assert device_index("lo") == 1
