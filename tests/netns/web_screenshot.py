"""Take the screenshot of docs/web.md: a lab of three VNIs, five minutes of traffic, a browser.

scripts/screenshot runs this, as root.
"""

import struct
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import ExitStack
from pathlib import Path

from tests.netns.browser import browser
from tests.netns.hosts import Pyvtep, address, ping
from vtep.testing.lab import Host, Lab

_PORT = 8479

_CONFIGS = {
    "a": """
[[vni]]
id = 100
tap = "vx100"
bridge = "br-web"
remote = ["192.0.2.2", "198.51.100.2"]

[[vni]]
id = 200
tap = "vx200"
bridge = "br-db"
remote = ["192.0.2.2"]

[[vni]]
id = 300
tap = "vx300"
address = ["10.0.44.1/24"]
remote = ["198.51.100.2", "198.51.100.9"]
""",
    "b": """
[[vni]]
id = 100
tap = "vx100"
address = ["10.0.42.2/24"]
remote = ["192.0.2.1"]

[[vni]]
id = 200
tap = "vx200"
address = ["10.0.43.2/24"]
remote = ["192.0.2.1"]
""",
    "c": """
[[vni]]
id = 100
tap = "vx100"
address = ["10.0.42.3/24"]
remote = ["198.51.100.1"]

[[vni]]
id = 300
tap = "vx300"
address = ["10.0.44.3/24"]
remote = ["198.51.100.1"]
""",
}
"""The configuration file of each host."""

_TRAFFIC = """
import math, random, socket, sys, time
to, rate, period = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    now = time.monotonic()
    wave = 1 + 0.6 * math.sin(2 * math.pi * now / period) + random.random() * 0.25
    for _ in range(int(rate * wave / 20)):
        sender.sendto(bytes(random.randrange(600, 1400)), (to, 9))
    time.sleep(0.05)
"""


def _traffic(host: Host, to: str, rate: int, period: int) -> None:
    """Send datagrams to an address, at about this many a second."""
    host.start(sys.executable, "-c", _TRAFFIC, to, str(rate), str(period))


def _hosts(lab: Lab) -> tuple[Host, Host, Host]:
    a, b, c = lab.host("a"), lab.host("b"), lab.host("c")
    lab.wire(a, b, "eth0")
    lab.wire(a, c, "eth1")
    c.run("ip", "link", "set", "eth1", "down")
    c.run("ip", "link", "set", "eth1", "name", "eth0")
    c.run("ip", "link", "set", "eth0", "up")
    address(a, "eth0", "192.0.2.1/24")
    address(a, "eth1", "198.51.100.1/24")
    address(b, "eth0", "192.0.2.2/24", "192.0.2.77/24")
    address(c, "eth0", "198.51.100.2/24")
    return a, b, c


def _start(a: Host, b: Host, c: Host, folder: Path) -> Pyvtep:
    """Start the VTEPs of all hosts. Returns: that of the first one."""
    for name in ("br-web", "br-db"):
        a.run("ip", "link", "add", name, "type", "bridge")
        a.run("ip", "link", "set", name, "up")
    address(a, "br-web", "10.0.42.1/24")
    address(a, "br-db", "10.0.43.1/24")
    for name, config in _CONFIGS.items():
        (folder / f"{name}.toml").write_text(config)
    hosts = {"a": a, "b": b, "c": c}
    started = {
        name: Pyvtep(host, folder, "--config", str(folder / f"{name}.toml")).ready()
        for name, host in hosts.items()
    }
    return started["a"]


def _smaller(png: bytes) -> bytes:
    """Return a PNG with its image compressed as far as zlib can; a browser takes less time for it.

    A chunk is its length, its type, its data and a CRC (RFC 2083, section 3.2).
    """
    at, image = 8, b""
    before: list[bytes] = []
    after: list[bytes] = []
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        chunk = png[at : at + length + 12]
        if chunk[4:8] == b"IDAT":
            image += chunk[8:-4]
        else:
            (after if image else before).append(chunk)
        at += length + 12
    packed = b"IDAT" + zlib.compress(zlib.decompress(image), 9)
    whole = struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    return png[:8] + b"".join((*before, whole, *after))


def take(picture: Path, seconds: float) -> None:
    """Run the lab for some seconds, and write the picture."""
    with tempfile.TemporaryDirectory() as place, Lab() as lab, ExitStack() as stack:
        folder = Path(place)
        a, b, c = _hosts(lab)
        first = _start(a, b, c, folder)
        for host, to in ((a, "10.0.42.2"), (a, "10.0.42.3"), (a, "10.0.43.2"), (a, "10.0.44.3")):
            ping(host, to)
        for host, to, rate, period in (
            (a, "10.0.42.2", 900, 97),
            (b, "10.0.42.1", 1700, 61),
            (c, "10.0.42.1", 500, 140),
            (a, "10.0.43.2", 120, 200),
            (b, "10.0.43.1", 300, 45),
            (c, "10.0.44.1", 40, 75),
        ):
            _traffic(host, to, rate, period)
        words = ("web", "--socket", str(first.control), "--listen", f"127.0.0.1:{_PORT}")
        web = a.start(sys.executable, "-m", "vtep", *words, stdout=subprocess.PIPE, text=True)
        assert web.stdout is not None
        url = web.stdout.readline().strip()
        stack.enter_context(a.inside())
        page = stack.enter_context(browser(folder / "chromium"))
        page.resize(1280, 960)
        page.open(url)
        page.wait_for("#link", "live")
        time.sleep(max(0.0, seconds - 15))
        # A VTEP that is no remote here, and one with another VNI.
        stranger = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((sys.argv[1], 0))
for _ in range(int(sys.argv[3])):
    sender.sendto(bytes.fromhex("08000000" + sys.argv[2] + "00") + bytes(60), (sys.argv[4], 4789))
"""
        b.run(sys.executable, "-c", stranger, "192.0.2.77", "0000c8", "7", "192.0.2.1")
        c.run(sys.executable, "-c", stranger, "198.51.100.2", "000190", "3", "198.51.100.1")
        page.wait_for("#drops", "source_unknown")
        time.sleep(10)
        for name, width, dark, fragment in (
            (picture.name, 1280, False, ""),
            ("dark-" + picture.name, 1280, True, "vni=100"),
            ("narrow-" + picture.name, 390, False, ""),
        ):
            page.script("location.hash = arguments[0]", fragment)
            page.resize(width, 960, dark=dark)
            time.sleep(6)
            height = page.script("return document.querySelector('footer').offsetTop")
            page.resize(width, min(height, 950 if width > 600 else 3000), dark=dark)
            page.script("scrollTo(0, 0)")
            time.sleep(1.5)
            octets = page.driver.get_screenshot_as_png()
            picture.with_name(name).write_bytes(_smaller(octets))
        page.collect()
        print(*page.errors, sep="\n")


if __name__ == "__main__":
    take(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 315.0)
