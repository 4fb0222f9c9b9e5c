"""The search for the control socket of a process."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtep.control import socket_files
from vtep.control.socket_files import ControlSocket


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    """Return a control socket of this process that is in no default directory."""
    made = socket_files.listen(tmp_path / "any name")
    yield made
    made.socket.close()


def test_the_control_socket_of_a_process_is_found_anywhere(control: ControlSocket) -> None:
    assert socket_files.of_process(os.getpid()) == control.path
    control.socket.accept()[0].close()
    # Sockets of other processes are left alone: a connection could start their service.
    with subprocess.Popen(["sleep", "1000"]) as other:
        assert socket_files.of_process(other.pid) is None
        other.kill()
    with pytest.raises(BlockingIOError):
        control.socket.accept()


def test_within_a_unit_it_is_found_among_the_sockets_of_its_user(
    control: ControlSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptors of a VTEP are hidden from processes of the same user."""
    monkeypatch.setattr(socket_files, "_descriptor_links", lambda _pid: None)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert socket_files.of_process(os.getpid()) is None
    monkeypatch.setattr(socket_files, "_RUN", tmp_path / "run")
    place = tmp_path / "run" / "pyvtep@a"
    place.mkdir(parents=True)
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{place}:/run/other")
    assert socket_files.of_process(os.getpid()) == control.path
    assert socket_files.of_process(os.getppid()) is None
