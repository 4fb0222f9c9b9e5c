"""Host names as remotes of whole VTEPs, on hosts in memory."""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from attrs import evolve
from dns.exception import DNSException
from dns.resolver import NXDOMAIN, Resolver

from tests.unit.nodes import IP_A, IP_B, IP_C, Node, frame, segment, until
from vtep import VtepError
from vtep.config import Config
from vtep.control.methods import Methods
from vtep.control.status import status
from vtep.daemon import host_watch, kernel_network
from vtep.host import name_lookup
from vtep.host.name_schedule import NameAnswer
from vtep.testing import MemoryUnderlay
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.format import FormatError

ALL = b"\xff" * 6
A, B = (bytes((2, 0, 0, 0, 1, number)) for number in range(2))


def answer(*addresses: str, ttl: float | None = 3600) -> NameAnswer:
    return NameAnswer(tuple(map(ip_address, addresses)), ttl)


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay(seed=1)) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_debounce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "_DEBOUNCE_S", 0)


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(main())


def flooded(node: Node, vni: int = 1) -> list[str]:
    return [remote.host for remote in node.vtep.ports[vni].segment.remotes]


def shown(node: Node) -> dict[str, Any]:
    """Return the whole status."""
    return status(node.vtep, node.vtep.ports.values()).whole()


def problems(node: Node) -> list[str]:
    return [each["text"] for each in shown(node)["problems"]]


def test_one_name_for_a_fleet(underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    a = Node(underlay, segment(remote="fleet.example"), ip=IP_A)
    b = Node(underlay, segment(remote="fleet.example"), ip=IP_B)

    async def main() -> None:
        # It does not exist yet, which is no reason not to start.
        async with a.vtep, b.vtep:
            await until(lambda: problems(a) and problems(b))
            assert shown(a)["segments"][0]["state"] == "waiting"
            assert problems(a) == [
                (
                    "vni 1: --remote fleet.example: there is no such name: it has no address, and "
                    "it is looked up again; see what this host finds: getent ahosts fleet.example"
                )
            ]
            for node in (a, b):
                node.network.names["fleet.example"] = answer(IP_A, IP_B, "2001:db8::9")
                node.vtep.names.look_up_again()
            await until(lambda: flooded(a) == [IP_B] and flooded(b) == [IP_A])
            assert shown(a)["segments"][0]["state"] == "up"
            assert problems(a) == []
            a.send(frame(A, ALL))
            await b.until_received(frame(A, ALL))
            b.send(frame(B, A))
            await a.until_received(frame(B, A))
            # A host more changes nothing about those that stay.
            before = a.vtep.fdb.lookup(B)
            a.network.names["fleet.example"] = answer(IP_C, IP_A, IP_B)
            a.vtep.names.look_up_again()
            await until(lambda: flooded(a) == [IP_B, IP_C])
            assert a.vtep.fdb.lookup(B) is before
            # The same answer in another order is no change.
            changes = len(a.changes)
            a.network.names["fleet.example"] = answer(IP_B, IP_C, IP_A)
            count = len(a.network.lookups)
            a.vtep.names.look_up_again()
            await until(lambda: len(a.network.lookups) > count)
            await asyncio.sleep(0)
            assert len(a.changes) == changes
            # One that goes takes its MACs with it.
            a.network.names["fleet.example"] = answer(IP_A, IP_C)
            a.vtep.names.look_up_again()
            await until(lambda: flooded(a) == [IP_C])
            assert a.vtep.fdb.lookup(B) is None

    run(main)
    lines = [each.getMessage() for each in caplog.records]
    assert [each for each in lines if each.startswith("--remote fleet")] == [
        (
            "--remote fleet.example: there is no such name; it is looked up again and again; see "
            "what this host finds: getent ahosts fleet.example"
        )
    ] * 2
    assert f"fleet.example is {IP_A}, {IP_B}, 2001:db8::9" in lines
    assert lines.count(f"fleet.example has {IP_A}, an address of this host itself: left out") == 1


def test_an_unusable_address_vetoes_no_change(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broadcast = "192.0.2.255"
    a = Node(underlay, segment(remote="fleet.example", address="10.0.0.1/24"), ip=IP_A)
    a.network.names["fleet.example"] = answer(IP_B)

    async def main() -> None:
        async with a.vtep:
            await until(lambda: flooded(a) == [IP_B])
            a.network.broadcasts.add(broadcast)
            a.network.names["fleet.example"] = answer(
                *(IP_C, IP_A, broadcast, "127.0.1.1", "224.0.0.9", "10.0.0.2")
            )
            a.vtep.names.look_up_again()
            await until(lambda: flooded(a) == [IP_C])
            await a.vtep.add(segment(2, "fleet.example"))
            assert flooded(a, 2) == ["10.0.0.2", IP_C]
            # The network can make a remote a broadcast address, and undo that.
            a.network.broadcasts.add(IP_C)
            a.network.notify_routes()
            await until(lambda: flooded(a) == [])
            a.network.broadcasts.clear()
            a.network.notify_routes()
            await until(lambda: flooded(a) == [IP_C, broadcast])

    run(main)
    lines = [each.getMessage() for each in caplog.records]
    for address, reason in (
        (IP_A, "an address of this host itself"),
        (broadcast, "a broadcast address"),
        ("127.0.1.1", "a loopback address"),
        ("224.0.0.9", "a multicast group"),
        ("10.0.0.2", "an address in the subnet of --address 10.0.0.1/24"),
    ):
        assert lines.count(f"fleet.example has {address}, {reason}: left out") == 1
    assert not any("cannot use the new addresses" in line for line in lines)


def test_failures_keep_the_addresses(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a = Node(underlay, segment(remote=(IP_C, "b.example")), segment(2, "b.example"))
    a.network.names["b.example"] = answer(IP_B)

    async def main() -> None:
        async with a.vtep:
            await until(lambda: flooded(a) == [IP_C, IP_B] and flooded(a, 2) == [IP_B])
            assert a.network.lookups == ["b.example"]  # Once for both VNIs.
            a.network.names["b.example"] = NameAnswer(error="no name server has answered")
            a.vtep.names.look_up_again()
            await until(lambda: len(a.network.lookups) == 2)
            a.vtep.names.look_up_again()
            await until(lambda: len(a.network.lookups) == 3)
            await until(lambda: problems(a))
            assert flooded(a) == [IP_C, IP_B]
            assert {each["state"] for each in shown(a)["segments"]} == {"up"}
            assert len(problems(a)) == 2
            assert f"{IP_B} of its last answer stay its remotes" in problems(a)[0]
            # A change of the network is a reason to try again.
            a.network.names["b.example"] = answer(IP_B)
            a.network.notify_routes()
            await until(lambda: not problems(a))

    run(main)
    assert sum("no name server" in each.getMessage() for each in caplog.records) == 1
    assert sum(each.getMessage() == f"b.example is {IP_B}" for each in caplog.records) == 2


def test_an_address_that_becomes_an_own_one(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote="fleet.example"))
    a.network.names["fleet.example"] = answer(IP_B, IP_C)

    async def main() -> None:
        async with a.vtep:
            await until(lambda: flooded(a) == [IP_B, IP_C])
            a.host.addresses.append(IP_C)
            a.network.notify_addresses()
            await until(lambda: flooded(a) == [IP_B])
            a.host.addresses.remove(IP_C)
            a.network.notify_addresses()
            await until(lambda: flooded(a) == [IP_B, IP_C])

    run(main)


def test_addresses_that_are_refused(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Node(underlay, segment(remote=(IP_B, "c.example")))

    async def main() -> None:
        async with a.vtep:
            apply = a.vtep._reconfigurer.reconcile
            refused = 0

            async def refuse(*_: object) -> None:
                nonlocal refused
                refused += 1
                raise VtepError("the host refuses")

            monkeypatch.setattr(a.vtep._reconfigurer, "reconcile", refuse)
            a.network.names["c.example"] = answer(IP_C)
            a.vtep.names.look_up_again()
            await until(lambda: refused == 1)
            a.vtep.names.look_up_again()
            await until(lambda: refused == 2)
            assert flooded(a) == [IP_B]
            monkeypatch.setattr(a.vtep._reconfigurer, "reconcile", apply)
            a.vtep.names.look_up_again()
            await until(lambda: flooded(a) == [IP_B, IP_C])

    run(main)
    lines = [each.getMessage() for each in caplog.records]
    assert lines.count("cannot use the new addresses of names: the host refuses") == 1


def test_names_of_a_running_vtep(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote=IP_B))
    a.network.names.update({"c.example": answer(IP_C), "six": answer("2001:db8::7")})

    async def reload() -> str:
        return ""

    async def main() -> None:
        methods = Methods(a.vtep, reload)
        async with a.vtep:
            await methods.call("remote.add", {"remote": "C.example"})
            await until(lambda: flooded(a) == [IP_B, IP_C])
            rows = await methods.call("remote.show", {})
            assert [(row["dst"], row["name"]) for row in rows] == [
                (IP_B, None),
                (IP_C, "c.example"),
            ]
            with pytest.raises(VtepError, match=r"c\.example: is a remote of vni 1 already"):
                await methods.call("remote.add", {"remote": "c.example"})
            with pytest.raises(VtepError, match=r"is an address of --remote c\.example; delete"):
                await methods.call("remote.del", {"remote": IP_C})
            # The configuration has the name, and its addresses survive changes of other options.
            told = await methods.call("set", {"options": {"ageing": "60"}})
            assert told["options"]["remote"] == [IP_B, "c.example"]
            assert told["names"] == [{"name": "c.example", "addresses": [IP_C], "error": None}]
            assert flooded(a) == [IP_B, IP_C]
            await methods.call("set", {"options": {"remote": ["six", "c.example"]}})
            assert flooded(a) == [IP_C]
            await until(lambda: flooded(a) == ["2001:db8::7", IP_C])
            assert [each.version for each in a.vtep.port.listeners] == [4, 6]
            await methods.call("remote.del", {"remote": "six"})
            assert flooded(a) == [IP_C]
            # A file that says the same changes nothing, and is a reason to look again.
            count, changes = len(a.network.lookups), len(a.changes)
            await a.vtep.reload([segment(remote="c.example", ageing=60)])
            assert len(a.changes) == changes
            await until(lambda: len(a.network.lookups) > count)
            await a.vtep.reload([segment()])
            assert a.vtep.names.error("c.example") == ""
            assert flooded(a) == [IP_B]

    run(main)


def test_names_that_take_long_or_fail(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Node(underlay, segment(remote=tuple(f"n{number}" for number in range(20))))

    async def main() -> None:
        gate = asyncio.Event()
        waiting: set[str] = set()

        async def look_up(name: str, _versions: object) -> NameAnswer:
            waiting.add(name)
            await gate.wait()
            if name == "n7":
                raise OSError("can't start new thread")
            return answer(f"198.51.100.{name[1:]}0")

        monkeypatch.setattr(a.network, "look_up", look_up)
        async with a.vtep:
            await until(lambda: len(waiting) == 8)  # Not all at a time.
            # One that is not wanted any more is not waited for, and its answer is not used.
            await a.vtep.change(evolve(a.vtep.port.config, remote=("n7", "n9")))
            gate.set()
            await until(lambda: flooded(a) == ["198.51.100.90"])
            assert problems(a) == [] or "can't start new thread" in problems(a)[0]
            await until(lambda: problems(a))

    run(main)


def test_an_upgrade_keeps_the_addresses(underlay: MemoryUnderlay) -> None:
    config = segment(remote=("b.example", IP_C)).with_addresses({"b.example": [ip_address(IP_B)]})
    fields = {"names": snapshot.name_fields(config)}
    state = fmt.decode(fmt.encode(fmt.SEGMENT, fields))
    bare = snapshot.parse_config(snapshot.config_fields(config))
    again = snapshot.with_addresses(bare, state)
    assert (bare, again.remote_addresses) == (config, config.remote_addresses)
    # A process of an older version sends none.
    assert snapshot.with_addresses(bare, fmt.decode(fmt.encode(fmt.SEGMENT, {}))) == config
    wrong = fmt.decode(fmt.encode(fmt.SEGMENT, {"names": {"b.example": ["x"]}}))
    with pytest.raises(FormatError):
        snapshot.with_addresses(bare, wrong)
    # The new process begins with them, although no name server answers it.
    a = Node(underlay, again)

    async def main() -> None:
        async with a.vtep:
            assert flooded(a) == [IP_B, IP_C]
            await until(lambda: problems(a))
            assert flooded(a) == [IP_B, IP_C]

    run(main)


# --- the resolver of the host -----------------------------------------------------------------


Records = dict[str, tuple[tuple[str, ...], float] | Exception]
"""The content of DNS by the type of records: addresses and their TTL, or an error."""

# Without types in dnspython.
ABSENT: Exception = cast("Any", NXDOMAIN)()
SILENT: Exception = cast("Any", DNSException)()


def resolve(records: Records, kind: str) -> object:
    """Return an answer as dnspython does."""
    found = records[kind]
    if isinstance(found, Exception):
        raise found
    rrset = [SimpleNamespace(address=each) for each in found[0]] or None
    return SimpleNamespace(rrset=rrset, chaining_result=SimpleNamespace(minimum_ttl=found[1]))


@pytest.fixture
def look_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NameAnswer]:
    """Return a function that looks up a name, given what getaddrinfo() and DNS have for it."""

    def function(
        found: tuple[str, ...] | Exception,
        records: Records,
        versions: tuple[int, ...] = (),
    ) -> NameAnswer:
        def getaddrinfo(*_: object, **__: object) -> list[tuple[Any, ...]]:
            if isinstance(found, Exception):
                raise found
            return [(0, 0, 0, "", (each, 0)) for each in found]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(Resolver, "__init__", lambda _: None)
        monkeypatch.setattr(
            Resolver, "resolve", lambda _self, _name, kind, **_: resolve(records, kind)
        )
        return name_lookup.look_up("x", versions)

    return function


def test_the_ttl_is_that_of_dns(look_up: Callable[..., NameAnswer]) -> None:
    both = ("192.0.2.2", "2001:db8::2")
    dns: dict[str, Any] = {"A": (both[:1], 60.0), "AAAA": (both[1:], 30.0)}
    assert look_up(both, dns).ttl == 30
    assert look_up(both[:1], dns).ttl == 60
    # The addresses are those of /etc/hosts, so how long they hold is not known.
    assert look_up(("192.0.2.9",), dns).ttl is None
    assert look_up(both[:1], {"A": ABSENT}).ttl is None
    assert look_up(both[:1], {"A": SILENT}) == NameAnswer((ip_address(both[0]),))
    # Addresses that were there before: gone, or not answered for.
    assert look_up(both[:1], {**dns, "AAAA": ((), 5.0)}, (4, 6)).failed == frozenset()
    assert look_up(both[:1], {**dns, "AAAA": SILENT}, (4, 6)).failed == {6}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "there is no such name"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "no name server has answered"),
        (socket.gaierror(socket.EAI_MEMORY, "out of memory"), "out of memory"),
        (UnicodeError("label too long"), "label too long"),
        (OSError("too many files"), "too many files"),
    ],
)
def test_failures_have_reasons(
    look_up: Callable[..., NameAnswer], error: Exception, reason: str
) -> None:
    assert look_up(error, {}) == NameAnswer(error=reason)


def test_a_lookup_blocks_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NameAnswer:
        raise KeyError("x")

    async def main() -> None:
        kernel = kernel_network.KernelNetwork()
        found = await kernel.look_up("localhost", ())
        assert ip_address("127.0.0.1") in found.addresses or ip_address("::1") in found.addresses
        monkeypatch.setattr(name_lookup, "look_up", fail)
        with pytest.raises(OSError, match="the lookup has failed: KeyError"):
            await kernel.look_up("localhost", ())

    run(main)


def test_a_name_with_unusable_addresses_is_no_problem(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, Config(vni=1, tap="vx1", remote="me"))
    a.network.names["me"] = answer(IP_A, "127.0.1.1")

    async def main() -> None:
        async with a.vtep:
            await until(lambda: a.network.lookups and not a.vtep.names.is_awaited("me"))
            assert (flooded(a), problems(a)) == ([], [])
            assert shown(a)["segments"][0]["state"] == "up"

    run(main)
