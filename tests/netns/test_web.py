"""The page of `pyvtep web`, in a headless Chromium."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.netns.browser import CHROMEDRIVER, CHROMIUM, PATIENCE, Browser, browser
from tests.netns.hosts import Pyvtep, address, mac_of, ping, segment, udp_socket, wait_until
from tests.unit import status_fake
from vtep.control.schema import Status
from vtep.testing.lab import Host, Lab
from vtep.web.address import ListenAddress
from vtep.web.server import WebServer
from vtep.web.shared_connection import SharedConnection

pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and CHROMEDRIVER.exists()), reason="needs chromium and chromium-driver"
)


@contextmanager
def web(host: Host, *words: str) -> Iterator[str]:
    """Run `pyvtep web` on a host, and yield its URL."""
    with host.start(
        *(sys.executable, "-m", "vtep", "web", "--listen", "127.0.0.1:0", *words),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Vtep(status_fake.FakeClient):
    """A VTEP that also answers with FDB entries."""

    entries: tuple[dict[str, Any], ...] = ()

    def call(self, method: str, **params: Any) -> Any:
        assert method == "fdb.sample"
        return {
            "vni": params["vni"],
            "dev": "vx",
            "monotonic": 1.0,
            "next_page": None,
            "fdb_entries": len(self.entries),
            "entries": self.entries,
        }


@contextmanager
def fake(vtep: Vtep) -> Iterator[str]:
    """Serve the page about a fake VTEP, and yield its URL."""
    shared = SharedConnection(lambda: vtep)
    with WebServer(ListenAddress.parse("127.0.0.1:0"), shared) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://{server.address}/"
        finally:
            server.shutdown()
            thread.join(PATIENCE)


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Browser]:
    """Return a browser in the namespace of the test."""
    with browser(tmp_path / "chromium") as opened:
        yield opened


@pytest.fixture
def inside(lab: Lab) -> Iterator[None]:
    """Put the test into a network namespace of its own, which has loopback only."""
    with lab.host("a").inside():
        yield


def rate(page: Browser, tile: str) -> float:
    """Return the frames a second of a tile; -1 if they are not known."""
    number, _, _ = page.text(f".tile.{tile} span").partition(" ")
    return float(number.replace(",", "")) if number[:1].isdigit() else -1.0


def test_the_page_follows_a_vtep_through_traffic_a_drop_and_a_restart(
    inside_a: tuple[Host, Host],
    start: Callable[..., Pyvtep],
    tmp_path: Path,
    chromium: Browser,
) -> None:
    a, b = inside_a
    a.run("ip", "link", "add", "br7", "type", "bridge")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    options = ("--control", str(tmp_path / "web.sock"), *segment(1, "192.0.2.2"), "--bridge", "br7")
    vtep = start(a, *options)
    a.run("ip", "link", "set", "br7", "up")
    address(a, "br7", "10.0.0.1/24")
    ping(a, "10.0.0.2")
    with web(a, "--socket", str(tmp_path / "web.sock")) as url:
        chromium.open(url)
        chromium.wait_for("#link", "live")
        chromium.wait_for(".map .vnis", "VNI 1")
        chromium.wait_for(".map .local", "br7")
        chromium.wait_for(".map .remotes", "192.0.2.2")
        chromium.wait_for(".map .remotes", "seen")
        wires = ".wire:not(.port)"
        wait_until(lambda: chromium.count(wires) == 1, "the line of the remote", PATIENCE)
        # Rates follow traffic.
        with a.start("ping", "-q", "-i", "0.01", "10.0.0.2", stdout=subprocess.DEVNULL) as pings:
            wait_until(lambda: rate(chromium, "tx") > 1, "frames that are sent", PATIENCE)
            wait_until(lambda: rate(chromium, "rx") > 1, "frames that are received", PATIENCE)
            pings.terminate()
        # A drop appears with its remedy.
        b.run("ip", "addr", "add", "192.0.2.99/24", "dev", "eth0")
        with udp_socket(b, "192.0.2.99") as stranger:
            stranger.sendto(bytes.fromhex("0800000000000100") + bytes(60), ("192.0.2.1", 4789))
        chromium.wait_for("#drops", "source_unknown")
        chromium.wait_for("#drops", "192.0.2.99")
        chromium.wait_for("#drops", "pyvtep remote add 192.0.2.99")
        # A VNI shows its MACs.
        chromium.click(".map .vni")
        chromium.wait_for(".macs td", mac_of(b))
        chromium.wait_for("#detail", "1450 octets")
        # A restart: the page says so, and goes on by itself.
        assert vtep.stop() == 0
        chromium.wait_for("#link", "reconnecting")
        chromium.wait_for("#banner", "no pyvtep answers there")
        # A page that is opened now claims nothing.
        chromium.open(url)
        chromium.wait_for("#link", "reconnecting")
        for selector in ("#drops", "#related", "#vnis", "#remotes"):
            code = "return document.querySelector(arguments[0]).innerText"
            assert chromium.script(code, selector) == ""
        process = start(a, *options).process.pid
        chromium.wait_for("#link", "live")
        chromium.wait_for("#about", f"process {process}")
        ping(a, "10.0.0.2")
        wait_until(lambda: rate(chromium, "tx") >= 0, "rates of the new process", PATIENCE)
        # All requests went to the server, and none of them failed.
        assert chromium.origins() == {url.rstrip("/")}
        assert chromium.errors == []


def test_hostile_names_are_shown_as_text(inside: None, chromium: Browser) -> None:
    del inside
    hostile = "<img src=x onerror=document.title='hacked'>"
    vtep = Vtep(hostile_status(hostile))
    vtep.entries = (
        {
            "mac": hostile,
            "dst": hostile,
            "state": hostile,
            "age": 1.0,
            "held": None,
            "moves": 0,
            "tx_frames": 1,
            "rx_frames": 1,
        },
    )
    with fake(vtep) as url:
        chromium.open(url)
        chromium.wait_for(".map .vnis", hostile)
        chromium.click(".map .vni")
        chromium.wait_for(".macs td", hostile)
        for place in (
            "#problem-list",
            ".map .remotes",
            ".map .local",
            "#detail",
            "#drops",
            "#about",
        ):
            chromium.wait_for(place, hostile)
        chromium.click(".map .remote")
        chromium.wait_for("#detail-heading", hostile)
        assert chromium.count("main img") == 0
        assert chromium.script("return document.title") == "pyvtep"
        assert chromium.origins() == {url.rstrip("/")}
        assert chromium.errors == []


def hostile_status(name: str) -> Status:
    """Return a status in which every text is a name."""
    drop = {**status_fake.recent_drop("source_unknown", 3, 1.0, name)}
    drop |= {"reason": name, "meaning": name}
    segment = status_fake.segment(
        10,
        dev=name,
        bridge=name,
        address=[name],
        offload=[name],
        fast_path_reason=name,
        underlay_devices=[name],
        underlay_missing=[name],
        recent_drops=[drop],
        remotes=[status_fake.remote(name, underlay_dev=name)],
    )
    problem = {"problem": name, "vni": 10, "remote": name, "text": name}
    return status_fake.status(version=name, segments=[segment], problems=[problem])


def test_fifty_vnis_with_64_remotes_are_collapsed_and_found_by_the_filter(
    inside: None, chromium: Browser
) -> None:
    del inside
    remotes = [status_fake.remote(f"192.0.2.{number}") for number in range(1, 65)]
    remotes[40]["liveness"] = "silent"
    segments = [
        status_fake.segment(vni, remotes=[*remotes], recent_drops=[]) for vni in range(100, 150)
    ]
    problem = {"problem": "remote-silent", "vni": 100, "remote": "192.0.2.41", "text": "silent"}
    vtep = Vtep(status_fake.status(segments=segments, problems=[problem]))
    with fake(vtep) as url:
        chromium.resize(1280)
        chromium.open(url)
        chromium.wait_for("#tiles", "64")
        assert chromium.count(".map .vni") == chromium.count(".map .remote") == 8
        # What is wrong is shown first.
        assert "192.0.2.41" in chromium.text(".map .remote:first-child")
        chromium.wait_for(".map .vnis .more", "Show 42 more")
        chromium.click(".map .vnis .more")
        wait_until(lambda: chromium.count(".map .vni") == 50, "all VNIs", PATIENCE)
        field = chromium.driver.find_element(By.ID, "filter")
        field.send_keys("vni 149")
        wait_until(lambda: chromium.count(".map .vni") == 1, "the VNI that is filtered", PATIENCE)
        assert chromium.count("#vnis tbody tr") == 1
        field.clear()
        field.send_keys("192.0.2.64")
        wait_until(lambda: chromium.count(".map .remote") == 1, "that remote", PATIENCE)
        field.clear()
        field.send_keys("nonsense")
        chromium.wait_for("#vnis", "Nothing matches the filter.")
        chromium.origins()
        assert chromium.errors == []


def test_the_page_is_used_by_keyboard_and_fits_a_telephone(inside: None, chromium: Browser) -> None:
    del inside
    with fake(Vtep()) as url:
        chromium.resize(390, 844)
        chromium.open(url)
        chromium.wait_for("#tiles .rx span", "frames/s")
        wide = "return document.documentElement.scrollWidth - innerWidth"
        assert chromium.script(wide) <= 0
        chromium.script("document.querySelector('.map .vni').focus()")
        ActionChains(chromium.driver).send_keys(Keys.ENTER).perform()
        chromium.wait_for("#detail-heading", "VNI 10")
        assert chromium.script("return location.hash") == "#vni=10"
        # A card keeps the focus while the page is updated once a second.
        updates = "return document.querySelector('.tile.tx span').textContent"
        chromium.script(updates)
        assert (
            chromium.script("return document.activeElement.getAttribute('aria-pressed')") == "true"
        )
        chromium.wait_for("#detail", "1450 octets")
        chromium.wait_for("#detail", "csum, tnl, tso, uso")
        assert chromium.script(wide) <= 0
        chromium.script("document.querySelector('.plot').focus()")
        ActionChains(chromium.driver).send_keys(Keys.ARROW_LEFT).perform()
        chromium.wait_for(".chart [aria-live]", "received 8.00 Mbit/s")
        label = chromium.script("return document.querySelector('.plot').getAttribute('aria-label')")
        assert "Bits per second" in label
        chromium.driver.back()
        chromium.wait_for("#detail-heading", "All VNIs")
        # Every control has a name, and every table its headings.
        unnamed = """
            return [...document.querySelectorAll("button, input")].filter((each) =>
                !each.hidden && !each.textContent && !each.labels?.length
                && !each.getAttribute("aria-label")).length
        """
        assert chromium.script(unnamed) == 0
        chromium.origins()
        assert chromium.errors == []


MODULES = """
const done = arguments[arguments.length - 1];
(async () => {
  const { History, ratesBetween, runs } = await import("/rates.js");
  const { scaled, duration, worst } = await import("/format.js");
  const { niceMaximum } = await import("/chart.js");
  const status = (monotonic, started, rx) => ({
    monotonic, started, counters: { rx_frames: rx, rx_bytes: rx * 100 }, drops: {},
    recent_drops: [],
    segments: [{ vni: 1, counters: { rx_frames: rx }, drops: { a: rx }, remotes: [],
                 recent_drops: [{ reason: "a", count: rx }] }],
  });
  const history = new History();
  const steps = [[1, 0, 10], [2, 0, 30], [2, 0, 30], [4, 0, 40],
    [5, 9, 3], [6, 9, 5], [7, 9, 1], [17, 9, 11], [18, 9, 12]];
  const added = steps.map((step) => history.add(status(...step)));
  const samples = history.samples("all");
  done({
    added,
    rates: samples.map(({ rates }) => rates && rates.rx_frames),
    bits: samples[1].rates.rx_bits,
    drops: history.dropRate(1, "a"),
    runs: runs(samples, "rx_frames").map((run) => run.length),
    scaled: [0, 0.25, 7, 999, 999.6, 1000, 12345, 123456, 99.96, 9.996e6, null].map(scaled),
    durations: [0.2, 5, 200, 7200, 200000].map(duration),
    worst: worst(["seen", "silent", "never-seen"]),
    maxima: [0, 1, 2.2, 900, 1000].map(niceMaximum),
  });
})().catch((error) => done(String(error)));
"""


def test_rates_are_unknown_after_a_restart_and_plots_have_gaps(
    inside: None, chromium: Browser
) -> None:
    del inside
    with fake(Vtep()) as url:
        chromium.open(url)
        got = chromium.driver.execute_async_script(MODULES)
    assert got["added"] == [True, True, False, *[True] * 6]
    # The first status, a new process, and a counter that has shrunk: no rate is known.
    assert got["rates"] == [None, 20, 5, None, 2, None, 1, 1]
    assert got["bits"] == 16000
    assert got["drops"] == 1
    assert got["runs"] == [2, 1, 2]
    expected = [
        "0",
        "0.3",
        "7",
        "999",
        "1.00 k",
        "1.00 k",
        "12.3 k",
        "123 k",
        "100",
        "10.0 M",
        "\u2013",
    ]
    assert got["scaled"] == expected
    assert got["durations"] == ["less than a second", "5 s", "3 min", "2 h", "2 days"]
    assert got["worst"] == "silent"
    assert got["maxima"] == [1, 1, 3, 1000, 1000]
