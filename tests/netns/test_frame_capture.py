"""`pyvtep capture` and the extcap of Wireshark, with frames of the kernel, judged by tshark."""

import asyncio
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from tests.netns.hosts import DEADLINE, Pair, Pyvtep, Start, Tunnel, ping, segment, wait_until
from tests.netns.test_upgrade import end, upgrade
from vtep.control.frames import CapturedFrame

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")

Server = tuple[tuple[str, int], socket.socket]

CAPTURE_DEADLINE = 4 * DEADLINE


@contextmanager
def capturing(vtep: Pyvtep, *words: str, **popen: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a capture, which has begun, and kill it afterwards."""
    with vtep.host.start(
        *(sys.executable, "-m", "vtep", "capture", "--socket", str(vtep.control), *words),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen},
    ) as child:
        line = error_lines(child).readline()
        try:
            assert line.startswith(b"capturing vx0 (vni 1)"), line
            yield child
        finally:
            child.kill()


def error_lines(child: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert child.stderr is not None
    return child.stderr


def output(child: "subprocess.Popen[bytes]", code: int = 0) -> tuple[bytes, list[str]]:
    """Return what a capture has printed until its end, and its summary."""
    out, err = child.communicate(timeout=CAPTURE_DEADLINE)
    assert child.returncode == code, err
    return out, err.decode().splitlines()


def tshark(*words: str, env: dict[str, str] | None = None) -> str:
    command = ["tshark", "-n", *words]
    done = subprocess.run(
        command, capture_output=True, timeout=CAPTURE_DEADLINE, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout.decode())


def fields_of(path: Path, *names: str, only: str = "frame") -> list[list[str]]:
    wanted = [word for name in names for word in ("-e", name)]
    checks = [
        word for name in ("ip", "udp", "tcp") for word in ("-o", f"{name}.check_checksum:TRUE")
    ]
    rows = tshark("-r", str(path), *checks, "-Y", only, "-T", "fields", *wanted)
    return [row.split("\t") for row in rows.splitlines()]


def test_lines(tunnel: Tunnel) -> None:
    first, _ = tunnel
    with capturing(first, "-c", "8", "icmp") as child:
        ping(first.host, "10.0.0.2", count=2)
        out, summary = output(child)
    lines = out.decode().splitlines()
    assert [line.split(" vni 1 ")[1].split()[:2] for line in lines[:4]] == [
        *(["inner", "tx"], ["outer", "tx"], ["outer", "rx"], ["inner", "rx"]),
    ]
    assert "10.0.0.1 > 10.0.0.2 ICMP echo request, length 98, id " in lines[0]
    assert "192.0.2.1." in lines[1]
    assert " > 192.0.2.2.4789 UDP: VXLAN vni 1: " in lines[1]
    assert summary[0] == "8 captured, 0 dropped by the capture"


def test_a_file_has_complete_packets_with_right_checksums(tunnel: Tunnel, tmp_path: Path) -> None:
    """TCP through superframes, UDP with partial checksums, and an interrupt at the end."""
    first, _ = tunnel
    path = tmp_path / "file.pcapng"
    with capturing(first, "-w", str(path)) as child:
        first.host.run("ping", "-q", "-c", "5", "-i", "0.1", "-s", "4000", "10.0.0.2")
        with tunnel[1].host.inside():
            server = asyncio.run(serve("10.0.0.2"))
        with first.host.inside():
            asyncio.run(transfer(server))
        server[1].close()
        child.send_signal(signal.SIGINT)
        _, summary = output(child)
    captured = int(summary[0].split()[0])
    rows = fields_of(
        path,
        *("frame.interface_name", "frame.packet_id", "frame.packet_flags_direction", "frame.len"),
    )
    assert len(rows) == captured > 50
    inner = {row[1] for row in rows if row[0] == "vx0 inner"}
    outer = {row[1] for row in rows if row[0] == "vx0 outer"}
    # Those of a group are pairs; each datagram here has a frame.
    assert inner == outer
    assert max(int(row[3]) for row in rows) <= 1514
    assert fields_of(path, "frame.number", only="_ws.malformed || ip.checksum.status == 0") == []
    bad = "tcp.checksum.status == 0 || udp.checksum.status == 0"
    assert fields_of(path, "frame.number", only=bad) == []
    assert len(fields_of(path, "frame.number", only="vxlan.vni == 1")) == len(
        [row for row in rows if row[0] == "vx0 outer"]
    )


async def serve(host: str) -> Server:
    sock = socket.create_server((host, 0))
    return sock.getsockname(), sock


async def transfer(server: Server) -> None:
    """Send some superframes over TCP."""
    address, sock = server
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _, writer = await asyncio.open_connection(*address)
    accepted, _ = await loop.sock_accept(sock)
    writer.write(bytes(200_000))
    received = 0
    while received < 200_000:
        received += len(await loop.sock_recv(accepted, 1 << 16))
    accepted.close()
    writer.close()


def test_a_pipe_to_tshark(tunnel: Tunnel) -> None:
    """As `pyvtep capture -w - | wireshark -k -i -`; that the reader ends first is no error."""
    first, _ = tunnel
    with capturing(first, "-w", "-", "icmp") as child:
        reader = subprocess.Popen(
            ["tshark", "-n", "-l", "-i", "-", "-c", "4", "-T", "fields", "-e", "frame.packet_id"],
            stdin=child.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        child.stdout.close()
        pinging = first.host.start("ping", "-q", "10.0.0.2")
        found, _ = reader.communicate(timeout=CAPTURE_DEADLINE)
        assert len(set(found.split())) == 2
        assert child.wait(CAPTURE_DEADLINE) in (0, 141)
        pinging.terminate()


def test_refusals(tunnel: Tunnel) -> None:
    first, _ = tunnel
    assert first.run("capture", "foo bar", code=2).startswith("filter 'foo bar': ")
    assert "is not an IP address" in first.run("capture", "--remote", "x", code=2)
    assert "no such segment" in first.run("capture", "--vni", "9", code=1)
    assert "cannot write" in first.run("capture", "-w", "/absent/file", code=1)
    leader, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "vtep", "capture", "--socket", str(first.control), "-w", "-"],
        stdout=terminal,
        stderr=subprocess.PIPE,
        timeout=CAPTURE_DEADLINE,
        check=False,
    )
    os.close(leader)
    os.close(terminal)
    assert done.returncode == 2
    assert b"terminal" in done.stderr


def test_drops_with_their_reason(tunnel: Tunnel) -> None:
    """A datagram of an unknown VNI, and one of an unknown source."""
    first, second = tunnel
    with capturing(first, "--drops", "-c", "2") as child, second.host.inside():
        second.host.run("ip", "addr", "add", "192.0.2.99/24", "dev", "eth0")
        for source, vni in (("192.0.2.2", 7), ("192.0.2.99", 1)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((source, 0))
                header = b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0"
                sock.sendto(header + b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5", ("192.0.2.1", 4789))
        out, _ = output(child)
    unknown_vni, unknown_source = sorted(out.decode().splitlines(), key=lambda line: "vx0" in line)
    assert "DROP vni_unknown: VXLAN header with a VNI that is not configured" in unknown_vni
    assert " - outer rx 192.0.2.2." in unknown_vni
    assert "DROP source_unknown: " in unknown_source
    assert " vx0 vni 1 outer rx 192.0.2.99." in unknown_source


def test_the_fast_path_is_left_and_used_again(
    fast_path: None, tunnel: Tunnel, tmp_path: Path
) -> None:
    """A capture sees what compiled turns would have handled."""
    del fast_path
    first, _ = tunnel
    ping(first.host, "10.0.0.2", count=5)
    with capturing(first, "-c", "40", "-w", str(tmp_path / "file"), "icmp") as child:
        (row,) = json.loads(first.invoke("vni show --json"))
        assert (row["fast_path"], "capture" in row["fast_path_reason"]) == ("off", True)
        first.host.run("ping", "-q", "-c", "10", "-i", "0.1", "10.0.0.2")
        output(child)
    (row,) = json.loads(first.invoke("vni show --json"))
    assert row["fast_path"] == "on"
    ping(first.host, "10.0.0.2", count=5)


def test_a_capture_that_is_not_read_delays_nothing(tunnel: Tunnel) -> None:
    """It is bounded, and says what it has lost."""
    first, second = tunnel
    reader, writer = os.pipe()
    with capturing(first, "-w", "-", stdout=writer) as child:
        os.close(writer)
        before = first.client_counter("tx_frames")
        with first.host.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

            def enough() -> bool:
                for _ in range(200):
                    sock.sendto(bytes(1000), ("10.0.0.2", 9))
                return first.client_counter("tx_frames") - before > 5000

            wait_until(enough, "more frames to be forwarded than the buffer holds")
        ping(second.host, "10.0.0.1")
        child.send_signal(signal.SIGINT)
        with os.fdopen(reader, "rb") as file:
            while file.read(1 << 20):
                pass
        _, err = child.communicate(timeout=CAPTURE_DEADLINE)
        lost = int(err.decode().split(" captured, ")[1].split()[0])
        assert lost > 0
    ping(first.host, "10.0.0.2")


def test_a_capture_goes_on_after_an_upgrade(tunnel: Tunnel, tmp_path: Path) -> None:
    first, _ = tunnel
    path = tmp_path / "file.pcapng"
    with capturing(first, "-w", str(path), "icmp") as child:
        ping(first.host, "10.0.0.2", count=2)
        pid = upgrade(first)
        size = path.stat().st_size

        def goes_on() -> bool:
            ping(first.host, "10.0.0.2", count=1)
            return path.stat().st_size > size + 1000

        wait_until(goes_on, "frames from the new process")
        child.send_signal(signal.SIGINT)
        _, summary = output(child)
    captured = int(summary[0].removesuffix(" captured, 0 dropped by the capture"))
    assert len(fields_of(path, "frame.number", only="icmp")) == captured >= 12
    end(first, pid)


def test_a_capture_ends_with_its_vtep(tunnel: Tunnel) -> None:
    first, _ = tunnel
    with capturing(first) as child:
        assert first.stop() == 0
        _, summary = output(child)
    assert "the capture has ended: this pyvtep has ended" in summary


def test_the_library(tunnel: Tunnel) -> None:
    first, _ = tunnel

    async def main() -> list[CapturedFrame]:
        found = []
        with first.client() as client:
            async with client.capture(vni=1, filter="icmp", point="inner") as frames:
                pinging = first.host.start("ping", "-q", "-i", "0.2", "10.0.0.2")
                async for frame in frames:
                    found.append(frame)
                    if len(found) == 4:
                        break
                pinging.terminate()
        return found

    frames = asyncio.run(main())
    assert {frame.point for frame in frames} == {"inner"}
    assert {frame.direction for frame in frames} == {"tx", "rx"}
    assert {(frame.vni, frame.dev, frame.remote) for frame in frames} == {(1, "vx0", "192.0.2.2")}
    assert all(len(frame.octets) == frame.length == 98 for frame in frames)


# --- extcap ---------------------------------------------------------------------------------------


def with_extcap(tmp_path: Path) -> dict[str, str]:
    """Install the extcap program. Returns: the environment in which tshark finds it."""
    environ = {**os.environ, "HOME": str(tmp_path)}
    environ.pop("XDG_CONFIG_HOME", None)
    command = [sys.executable, "-m", "vtep", "extcap"]
    subprocess.run([*command, "install"], check=True, capture_output=True, env=environ)
    return environ


def test_wireshark_lists_and_captures_vnis(pair: Pair, start: Start, tmp_path: Path) -> None:
    options = with_extcap(tmp_path)
    assert "pyvtep" not in tshark("-D", env=options)
    names = ("--control", "/run/pyvtep/vx0.sock")
    first = start(pair[0], *segment(1, "192.0.2.2", "10.0.0.1/24"), *names)
    start(pair[1], *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(pair[0], "10.0.0.2")
    assert "pyvtep-vx0-1 (pyvtep VNI 1 (vx0))" in tshark("-D", env=options)
    pinging = pair[0].start("ping", "-q", "-i", "0.2", "10.0.0.2")
    fields = ("-T", "fields", "-e", "frame.interface_name", "-e", "icmp.type")
    rows = tshark("-i", "pyvtep-vx0-1", "-c", "4", "-f", "icmp", *fields, env=options).splitlines()
    assert {row.split("\t")[0] for row in rows} == {"vx0 inner", "vx0 outer"}
    assert all(row.split("\t")[1] for row in rows)
    pinging.terminate()
    run = [sys.executable, "-m", "vtep", "extcap", "run", "--extcap-interface", "pyvtep-vx0-1"]
    check = subprocess.run(
        [*run, "--extcap-capture-filter", "foo bar"], capture_output=True, text=True, check=True
    )
    assert "syntax error" in check.stdout
    check = subprocess.run(
        [*run, "--extcap-capture-filter", "tcp"], capture_output=True, text=True, check=True
    )
    assert check.stdout == ""
    assert first.process.poll() is None
    command = [sys.executable, "-m", "vtep", "extcap"]
    subprocess.run([*command, "uninstall"], check=True, capture_output=True, env=options)
    assert "pyvtep" not in tshark("-D", env=options)


def test_extcap_of_a_user_without_the_right(pair: Pair, start: Start) -> None:
    """An interface stands for what may not be seen, and says why when it is captured."""
    start(pair[0], *segment(1, "192.0.2.2"), "--control", "/run/pyvtep/vx0.sock")
    Path("/run/pyvtep").chmod(0o755)

    def as_user(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [
                *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"),
                *(sys.executable, "-m", "vtep", "extcap", "run", *words),
            ],
            capture_output=True,
            text=True,
            timeout=CAPTURE_DEADLINE,
            check=False,
        )

    listed = as_user("--extcap-interfaces")
    assert "interface {value=pyvtep-denied}" in listed.stdout, listed.stderr
    refused = as_user("--extcap-interface", "pyvtep-denied", "--capture", "--fifo", "/dev/null")
    assert refused.returncode == 1
    assert "--control-admin-group" in refused.stderr
