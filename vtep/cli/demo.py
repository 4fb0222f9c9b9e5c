"""`pyvtep demo`: two hosts in network namespaces, a tunnel between them, and a transfer over it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.text import Text

from vtep.errors import VtepError
from vtep.testing.lab import Host, Lab, need, transfer

_VNI = 1
_TRANSFER = 256 << 20
_DEADLINE_S = 20.0

_PICTURE = """\
        host a                                host b
   vx0 10.0.0.1/24                       vx0 10.0.0.2/24     the overlay
          |                                     |
       [bold green]pyvtep[/]                                [bold green]pyvtep[/]
          |                                     |
   eth0 192.0.2.1 ═════ UDP port 4789 ═════ eth0 192.0.2.2   the underlay"""


def run() -> None:
    """Run the demo on the terminal. Raises: VtepError if this host cannot run it."""
    console = Console(highlight=False, emoji=False)
    if os.geteuid() != 0:
        raise VtepError("cannot make network namespaces without root: sudo pyvtep demo")
    need("ip", "ping", "tcpdump")
    began = time.monotonic()
    with (
        _terminating_as_exit(),
        tempfile.TemporaryDirectory(prefix="pyvtep-demo-") as folder,
        Lab() as lab,
    ):
        _show(console, lab, Path(folder))
    console.print(
        f"\n[green]Done[/] in {time.monotonic() - began:.0f} s. The namespaces, their devices and "
        "every process in them are gone."
    )


def _show(console: Console, lab: Lab, folder: Path) -> None:
    picture = Text.from_markup(_PICTURE)
    picture.no_wrap = True
    console.print(Panel(picture, title="pyvtep: a VXLAN tunnel in pure Python", expand=False))

    _title(console, 1, "Two hosts, connected by a cable (a veth pair)")
    a, b = lab.host("a"), lab.host("b")
    for host in (a, b):
        with host.inside(), suppress(FileNotFoundError):
            # The capture is to start with a VXLAN packet, not with neighbour discovery.
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    lab.wire(a, b)
    for host, own in ((a, 1), (b, 2)):
        _type(console, host, "ip", "addr", "add", f"192.0.2.{own}/24", "dev", "eth0")

    capture = folder / "underlay.pcap"
    tcpdump = a.start(
        # -U: without it, tcpdump writes packets in blocks, and none of them in this short time.
        *("tcpdump", "-i", "eth0", "-U", "-s", "200", "-w", str(capture)),
        *("-c", "200", "udp", "port", "4789"),
        stderr=(folder / "tcpdump").open("w"),
    )
    _wait(lambda: "listening" in (folder / "tcpdump").read_text(), "tcpdump")

    _title(console, 2, "A VTEP on each host")
    vteps = {}
    for host, own, other in ((a, 1, 2), (b, 2, 1)):
        arguments = ["--vni", str(_VNI), "--remote", f"192.0.2.{other}", "--tap", "vx0"]
        arguments += ["--address", f"10.0.0.{own}/24"]
        console.print(_prompt(host, ["pyvtep", *arguments, "&"]))
        log = folder / host.name
        vteps[host] = host.start(
            # Both hosts share /run, where their control sockets would be.
            *(sys.executable, "-m", "vtep", *arguments, "--control", "none"),
            # A compiler would compete with the transfer that is shown.
            "--no-fast-path",
            stderr=log.open("w"),
            cwd="/",
        )
    for host, process in vteps.items():
        _wait_for_line(folder / host.name, "UDP port", process)
        _print(console, Text((folder / host.name).read_text().rstrip(), style="dim"))

    _title(console, 3, "A ping through the tunnel")
    _type(console, a, "ping", "-c", "5", "-i", "0.2", "10.0.0.2")

    _title(console, 4, f"A TCP transfer of {_TRANSFER >> 20} MiB through the tunnel")
    _transfer(console, a, b, "10.0.0.2")

    _title(console, 5, "The report of the VTEP of host a: counters and learned MACs (kill -USR1)")
    vteps[a].send_signal(signal.SIGUSR1)
    _wait_for_line(folder / "a", "fdb entries", vteps[a])
    _wait_for_line(folder / "a", " dst ", vteps[a])
    report = (folder / "a").read_text().splitlines()[1:]
    for line in report:
        words = line.split()
        if not line.startswith("    ") or "dst" in words or words[1] != "0":
            _print(console, Text(line, style="bold" if "dst" in words else ""))

    _title(console, 6, "The first VXLAN packet on the cable, decoded by tcpdump")
    tcpdump.send_signal(signal.SIGTERM)
    tcpdump.wait(_DEADLINE_S)
    # -K: a veth pair leaves checksums to be filled in by a NIC, so that they look wrong.
    packet = a.run("tcpdump", "-r", str(capture), "-n", "-e", "-vv", "-K", "-c", "1")
    _print(console, Text(packet.rstrip(), style="cyan"))


@contextmanager
def _terminating_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that context managers remove everything."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _title(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/]")


def _print(console: Console, text: Text) -> None:
    """Print without wrapping lines, which may be longer than the terminal is wide."""
    console.print(text, soft_wrap=True)


def _prompt(host: Host, command: list[str]) -> Text:
    return Text.assemble((f"{host.name}# ", "bold magenta"), " ".join(command))


def _type(console: Console, host: Host, *command: str) -> None:
    """Show a command as if it were typed on a host, and its output as it comes."""
    console.print(_prompt(host, list(command)))
    with host.start(*command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            _print(console, Text(line.rstrip(), style="dim"))
    if process.returncode:
        raise VtepError(f"{command[0]} ended with exit code {process.returncode}")


def _transfer(console: Console, source: Host, sink: Host, address: str) -> None:
    """Send random octets over TCP with a progress bar, and compare checksums at both ends."""
    progress = Progress(BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with progress:
        task = progress.add_task("", total=_TRANSFER)
        seconds = transfer(
            source, sink, address, _TRANSFER, lambda at: progress.update(task, completed=at)
        )
    rate = _TRANSFER * 8 / seconds / 1e9
    console.print(f"[bold]{rate:.2f} Gbit/s[/], and the SHA-256 is the same at both ends")


def _wait_for_line(log: Path, text: str, process: "subprocess.Popen[str]") -> None:
    """Wait until a process has written `text`. Raises: VtepError with its output if it ends."""

    def written() -> bool:
        if process.poll() is not None:
            raise VtepError(log.read_text().strip().removeprefix("pyvtep: error: "))
        return text in log.read_text()

    _wait(written, text)


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise VtepError(f"timeout after {_DEADLINE_S:.0f} s, waiting for: {what}")
        time.sleep(0.02)
