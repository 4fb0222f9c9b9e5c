"""Records of attachments, of running and of killed processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve

from vtep.docker import record
from vtep.docker.record import AttachmentRecord
from vtep.errors import ConfigError, VtepError

MINE = AttachmentRecord(
    pid=os.getpid(),
    network="mynetwork",
    id="9d76e6474256",
    vni=200,
    tap="vx200",
    remotes=("192.0.2.2",),
    docker_host="unix:///var/run/docker.sock",
    recipe="docker network create mynetwork",
)

KEEPER = """
import os, sys
from pathlib import Path
from vtep.docker import record
from vtep.docker.record import AttachmentRecord
mine = AttachmentRecord(os.getpid(), "mynetwork", "9d76e6474256", 200, "vx200", (), "", "")
with record.publish(mine, Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def keeper(folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that publishes a record until it is ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"\n"
    return child


def end(child: "subprocess.Popen[bytes]") -> int:
    child.communicate()
    return child.returncode


def test_the_records_of_units_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, unit = tmp_path / "docker", tmp_path / "pyvtep-docker@mynetwork"
    monkeypatch.setattr(record, "RECORD_DIRECTORY", own)
    assert record.own_directory({}) == own
    of_unit = record.own_directory({"RUNTIME_DIRECTORY": f"{unit}:/run/other"})
    with record.publish(MINE, of_unit):
        assert record.list_records(own) == [MINE]
        with pytest.raises(VtepError, match="attached already"), record.publish(MINE, own):
            pass
        for name in (MINE.network, MINE.id[:5]):
            # Not by a signal: the user of the unit, not root, has written the PID.
            with pytest.raises(VtepError, match="systemctl stop pyvtep-docker@mynetwork"):
                record.detach(name, own)
    assert record.list_records(own) == []


def test_a_record_exists_while_it_is_published(tmp_path: Path) -> None:
    assert record.list_records(tmp_path / "new") == []
    with record.publish(MINE, tmp_path / "new"):
        assert record.list_records(tmp_path / "new") == [MINE]
    assert record.list_records(tmp_path / "new") == []
    assert list((tmp_path / "new").iterdir()) == []


def test_records_of_several_networks(tmp_path: Path) -> None:
    other = evolve(MINE, network="other.net-1")
    with record.publish(other, tmp_path), record.publish(MINE, tmp_path):
        assert record.list_records(tmp_path) == [MINE, other]


def test_a_network_is_attached_once(tmp_path: Path) -> None:
    with record.publish(MINE, tmp_path):
        with (
            pytest.raises(VtepError, match=r"attached already.* pyvtep docker detach mynetwork"),
            record.publish(MINE, tmp_path),
        ):
            raise AssertionError("it was kept twice")
        assert record.list_records(tmp_path) == [MINE]


def test_the_record_of_a_killed_process_is_invalid(tmp_path: Path) -> None:
    child = keeper(tmp_path)
    assert len(record.list_records(tmp_path)) == 1
    child.kill()
    end(child)
    assert list(tmp_path.iterdir())
    assert record.list_records(tmp_path) == []
    with pytest.raises(VtepError, match="is not attached"):
        record.detach("mynetwork", tmp_path)
    with record.publish(MINE, tmp_path):
        assert record.list_records(tmp_path) == [MINE]


def test_detach_ends_the_process_that_attached(tmp_path: Path) -> None:
    child = keeper(tmp_path)
    record.detach("mynetwork", tmp_path)
    assert child.poll() == -15
    end(child)


def test_an_attachment_in_another_network_namespace_is_not_ended(tmp_path: Path) -> None:
    away = evolve(MINE, netns="4:1")
    with record.publish(away, tmp_path):
        with pytest.raises(VtepError) as refused:
            record.detach("mynetwork", tmp_path)
        assert str(refused.value) == (
            f"network mynetwork is attached by process {MINE.pid} in another network namespace; "
            f"end it there: nsenter -t {MINE.pid} -n pyvtep docker detach mynetwork"
        )


def test_detach_by_a_prefix_of_the_id(tmp_path: Path) -> None:
    child = keeper(tmp_path)
    with (
        record.publish(evolve(MINE, network="other", id="9d8"), tmp_path),
        pytest.raises(VtepError, match="network 9d is not attached"),
    ):
        record.detach("9d", tmp_path)  # It might be either.
    record.detach("9d76e", tmp_path)
    assert child.poll() == -15
    end(child)


def test_a_process_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_END_TIMEOUT_S", 0.01)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + KEEPER
    monkeypatch.setattr(f"{__name__}.KEEPER", stubborn)
    child = keeper(tmp_path)
    with pytest.raises(VtepError, match="does not end"):
        record.detach("mynetwork", tmp_path)
    assert end(child) == 0


def test_nothing_to_detach(tmp_path: Path) -> None:
    with pytest.raises(VtepError, match="mynetwork is not attached on this host"):
        record.detach("mynetwork", tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-x", "a b", "é", "a\0b"])
def test_invalid_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name that a Docker network can have"):
        record.detach(name, tmp_path)
    with (
        pytest.raises(ConfigError, match="is not a name"),
        record.publish(evolve(MINE, network=name), tmp_path),
    ):
        raise AssertionError("it was kept")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"remotes": 1}', b"\xff"])
def test_invalid_files_are_skipped(tmp_path: Path, content: bytes) -> None:
    with record.publish(MINE, tmp_path):
        (tmp_path / "mynetwork.json").write_bytes(content)
        assert record.list_records(tmp_path) == []


def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(VtepError, match=r"cannot write .*; run as root"),
        record.publish(MINE, tmp_path / "file" / "docker"),
    ):
        raise AssertionError("it was kept")
