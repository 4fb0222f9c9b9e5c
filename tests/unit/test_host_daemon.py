"""The choice of the pyvtep that a Docker network joins."""

from pathlib import Path
from typing import cast

import pytest

from vtep.control.choice import Candidate
from vtep.control.client import Client, DisconnectedError
from vtep.docker import host_daemon
from vtep.docker.host_daemon import join
from vtep.errors import ConfigError, VtepError

A, B = Path("/run/pyvtep/a.sock"), Path("/run/pyvtep/b.sock")
OTHERS = Candidate(Path("/run/pyvtep/other.sock"), 9, here=False)
"""A process of another network namespace."""


def joined(port: int, socket: Path | None = None) -> object:
    """Return the socket that is joined, which stands for the client here."""
    return join(dstport=port, socket=socket)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[Path, set[int]]:
    """Return the processes of a host, each with the UDP ports of its VNIs; a test adds some."""
    here: dict[Path, set[int]] = {}

    def candidates() -> list[Candidate]:
        return [OTHERS, *(Candidate(path, 7, here=True) for path in here)]

    def start(command: list[str]) -> None:
        assert command[-3:] == ["vtep", "--on-demand", "--background"]
        here[A] = set()

    def connect(path: Path) -> Client:
        if path not in here:
            raise DisconnectedError(f"--socket {path}: no pyvtep answers there")
        return cast("Client", path)

    monkeypatch.setattr("vtep.docker.host_daemon.candidates", candidates)
    monkeypatch.setattr("vtep.docker.host_daemon._ports", here.__getitem__)
    monkeypatch.setattr("vtep.docker.host_daemon._run", start)
    monkeypatch.setattr("vtep.docker.host_daemon._connect", connect)
    monkeypatch.setattr("vtep.control.socket_files.folder", lambda: tmp_path / "run")
    return here


def test_a_process_is_started_only_if_none_runs_here(host: dict[Path, set[int]]) -> None:
    assert joined(4789) == A
    assert host == {A: set()}
    host[A] = {8472}  # It can bind more ports.
    assert joined(4789) == A


def test_of_several_it_is_the_one_with_the_port_or_the_one_that_is_named(
    host: dict[Path, set[int]],
) -> None:
    host.update({A: {4789}, B: {4790}})
    assert joined(4790) == B
    with pytest.raises(ConfigError, match=r"with --socket PATH: .*a\.sock .*; .*b\.sock "):
        joined(4791)
    assert joined(4791, A) == A
    with pytest.raises(DisconnectedError, match="no pyvtep answers"):
        joined(4789, Path("/none.sock"))


def test_a_process_that_ends_meanwhile_is_replaced(
    host: dict[Path, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = host_daemon._connect
    outcomes = [DisconnectedError("the VTEP has ended")]

    def connect_late(path: Path) -> Client:
        if outcomes:
            del host[path]
            raise outcomes.pop()
        return connect(path)

    monkeypatch.setattr("vtep.docker.host_daemon._connect", connect_late)
    host[B] = set()
    assert joined(4789) == A
    outcomes += [DisconnectedError("the VTEP has ended")] * 3
    with pytest.raises(DisconnectedError, match="has ended"):
        joined(4789)


def test_without_a_place_for_its_socket_none_is_started(
    host: dict[Path, set[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vtep.control.socket_files.folder", lambda: None)
    with pytest.raises(VtepError, match=r"^cannot start a pyvtep: XDG_RUNTIME_DIR is not set"):
        joined(4789)
    (tmp_path / "file").touch()
    monkeypatch.setattr("vtep.control.socket_files.folder", lambda: tmp_path / "file/below")
    with pytest.raises(VtepError, match=r"on-demand\.lock: Not a directory; run as root"):
        joined(4789)
    assert host == {}
