"""Access to the control socket by user and group: the table, the policy, and a server with it."""

import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_control_methods import TABLE, Still, ask
from tests.unit.test_control_server import connected, path, run, serving, until
from vtep.config import Config, Settings
from vtep.control import connection, server, socket_files
from vtep.control.access import READING, Access, Group, Peer, Policy
from vtep.errors import ConfigError, VtepError

__all__ = ["path", "run"]  # Fixtures.

OWN, READER, ADMIN, OTHER = 1000, 2000, 3000, 4000
POLICY = Policy(1000, Group("net-read", READER), Group("net-admin", ADMIN))

IDS = st.integers(0, 5)
GROUPS = st.none() | st.builds(Group, st.just("g"), IDS)
POLICIES = st.builds(Policy, IDS, GROUPS, GROUPS)
PEERS = st.builds(Peer, IDS, st.frozensets(IDS))


# --- the table and the policy ----------------------------------------------------------------


def test_a_capture_shows_payload_and_so_needs_the_right_to_change() -> None:
    assert POLICY.refusal("capture", Access.CHANGE) is None
    assert "net-admin" in str(POLICY.refusal("capture", Access.READ))


def test_every_reading_method_exists_and_changes_nothing() -> None:
    elsewhere = {server.SUBSCRIBE, "upgrade.show", "evpn.show"}  # Not methods of `Methods`.
    assert set(TABLE) | elsewhere >= READING
    vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0", proxy=True))
    ask(vtep, "fdb.add", mac="02:00:00:00:00:01", dst="192.0.2.3")

    def seen() -> list[Any]:
        parameters = {"fdb.get": {"mac": "02:00:00:00:00:01"}}
        methods = sorted(
            READING - elsewhere - {"stats", "status", "fdb.sample", "trace"}
        )  # They have the time, and a trace needs a TAP (see test_trace.py).
        return [ask(vtep, method, **parameters.get(method, {})) for method in methods]

    before = seen()
    assert seen() == before
    assert vtep.told == []


@given(POLICIES, PEERS, st.sampled_from([*TABLE, server.SUBSCRIBE, "no.such", ""]))
def test_a_peer_may_call_what_its_access_allows(policy: Policy, peer: Peer, method: str) -> None:
    access = policy.access(peer)
    groups = {
        Access.READ: policy.readers is not None and policy.readers.gid in peer.gids,
        Access.CHANGE: policy.changers is not None and policy.changers.gid in peer.gids,
    }
    owner = peer.uid in (0, policy.uid)
    assert (access is Access.CHANGE) == (owner or groups[Access.CHANGE])
    assert (access is Access.NONE) == (not owner and not any(groups.values()))
    allowed = policy.refusal(method, access) is None
    assert allowed == (access is Access.CHANGE or (access is Access.READ and method in READING))


@given(POLICIES, PEERS, IDS)
def test_one_more_group_takes_no_access_away(policy: Policy, peer: Peer, gid: int) -> None:
    assert policy.access(Peer(peer.uid, {*peer.gids, gid})) >= policy.access(peer)


def test_groups_without_a_control_socket_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="--control-group staff: there is no control socket"):
        Settings(segments=[], control="none", control_group="staff")
    with pytest.raises(ConfigError, match="--control-admin-group staff: there is no"):
        Settings(segments=[], control="none", control_admin_group="staff")


@pytest.mark.parametrize("text", ["", "a b", "a:b", "a,b", "/x", "a\n"])
def test_what_is_no_group_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a GROUP"):
        Settings(segments=[], control_group=text)


# --- a server --------------------------------------------------------------------------------


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[Peer]:
    """Replace the credentials of clients by those in a list, in the order of their connections."""
    waiting: list[Peer] = []
    monkeypatch.setattr(server, "peer_of", lambda _: waiting.pop(0))
    return waiting


def test_a_reader_reads_and_is_told_which_group_may_change(
    run: Callable[..., None], path: Path, peers: list[Peer]
) -> None:
    async def main() -> None:
        peers.extend((Peer(OTHER, {READER}), Peer(OTHER, {ADMIN})))
        async with serving(path, POLICY) as methods, connected(path) as reader:
            assert "no such method" in (await reader.ask("ping"))["error"]["message"]
            assert (await reader.ask(server.SUBSCRIBE))["result"] is True
            line = "permission denied: members of group net-read may only read; be a member of "
            said = (await reader.ask("echo"))["error"]
            assert said == {"code": -32000, "message": f"echo: {line}group net-admin"}
            # Neither in a batch nor as a notification, and the rest of the batch is answered.
            call = '{"jsonrpc":"2.0","method":"%s"%s}'
            requests = [call % ("echo", ""), call % ("echo", ',"id":1'), call % ("ping", ',"id":2')]
            reader.send(f"[{','.join(requests)}]\n".encode())
            refused, answered = await reader.answer()
            assert "permission denied" in refused["error"]["message"]
            assert "no such method" in answered["error"]["message"]
            assert [name for name, _ in methods.called if name != "flush"] == ["ping", "ping"]
            async with connected(path) as admin:
                assert (await admin.ask("echo", a=1))["result"] == {"a": 1}

    run(main())


def test_a_peer_without_access_gets_the_reason_whatever_it_sends(
    run: Callable[..., None], path: Path, peers: list[Peer]
) -> None:
    async def main() -> None:
        async with serving(path, POLICY) as methods:
            for octets in (b"", b"\0" * 70000, b'{"jsonrpc":"2.0","method":"echo","id":1}\n' * 100):
                peers.append(Peer(OTHER, {OTHER}))
                async with connected(path) as client:
                    client.send(octets)
                    said = await client.answer()
                    assert said["id"] is None
                    assert "group net-read or net-admin" in said["error"]["message"]
                    assert await client.answer() is None
            assert methods.called == []

    run(main())


def test_readers_leave_room_for_those_that_may_change(
    run: Callable[..., None],
    path: Path,
    peers: list[Peer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 3)
    monkeypatch.setattr(server, "READERS_MAX", 2)

    async def main() -> None:
        peers.extend((Peer(OTHER, {ADMIN}), *[Peer(OTHER, {READER})] * 3, Peer(OTHER, {READER})))
        async with (
            serving(path, POLICY) as methods,
            connected(path) as admin,
            connected(path) as first,
            connected(path) as second,
        ):
            assert (await admin.ask("echo"))["result"] == {}
            for reader in (first, second):
                await reader.ask("ping")
            async with connected(path) as third:
                assert "too many clients: 2" in (await third.answer())["error"]["message"]
            # An idle administrator is not disconnected for a reader, but a reader is.
            monkeypatch.setattr(server, "IDLE_S", 0.0)
            async with connected(path) as third:
                await third.ask("ping")
                assert "disconnected: idle" in (await first.answer())["error"]["message"]
                assert (await admin.ask("echo"))["result"] == {}
            await until(lambda: methods.called)

    run(main())


def test_the_credentials_are_those_of_the_process_that_connected(tmp_path: Path) -> None:
    listener = socket_files.listen(tmp_path / "x.sock")
    with listener.socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(listener.path))
        accepted, _ = listener.socket.accept()
        with accepted:
            peer = connection.peer_of(accepted)
    assert peer.uid == os.geteuid()
    assert set(peer.gids) == {os.getegid(), *os.getgroups()}


# --- the file --------------------------------------------------------------------------------


def test_the_socket_is_open_to_the_groups_and_to_no_other_user(tmp_path: Path) -> None:
    place = tmp_path / "x.sock"
    listener = socket_files.listen(place, [ADMIN, READER])
    listener.socket.close()
    assert stat.S_IMODE(place.stat().st_mode) == 0o660  # The group's bits are the mask of the ACL.
    found = os.getxattr(place, "system.posix_acl_access")
    entries = list(struct.iter_unpack("<HHI", found[4:]))
    # Tags: owner, its group, named groups, mask, others.
    assert [(tag, permission) for tag, permission, _ in entries] == [
        *((1, 6), (4, 0), (8, 6), (8, 6), (16, 6), (32, 0))
    ]
    assert [gid for tag, _, gid in entries if tag == 8] == [READER, ADMIN]


def test_without_access_control_lists_the_socket_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(VtepError, match="has no access control lists"):
        socket_files.listen(tmp_path / "x.sock", [READER])
    assert not (tmp_path / "x.sock").exists()


def test_a_user_that_root_has_made_a_directory_for_listens_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_files, "_RUN", tmp_path / "pyvtep")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "xdg"))
    (tmp_path / "xdg").mkdir()
    uid = os.geteuid() or OTHER
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert socket_files.folder() == tmp_path / "xdg" / "pyvtep"
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    socket_files.prepare(os.getuid(), os.getgid())
    own = tmp_path / "pyvtep" / str(os.getuid())
    assert stat.S_IMODE(own.stat().st_mode) == 0o755
    monkeypatch.setattr(os, "geteuid", os.getuid)
    if os.getuid():
        assert socket_files.folder() == own
    # The directory of a systemd unit comes first, if clients look for sockets there.
    of_unit = tmp_path / "pyvtep" / "unit"
    of_unit.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{of_unit}:{tmp_path}")
    if os.getuid():
        assert socket_files.folder() == of_unit
    listener = socket_files.listen(of_unit / "vx0.sock")
    assert [each.path for each in socket_files.live()] == [listener.path]
    assert socket_files.names() == {"vx0"}
    listener.socket.close()
