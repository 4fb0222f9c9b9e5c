"""The exporter beside a running pyvtep: real scrapes, restarts, and a real Prometheus."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    Tunnel,
    address,
    packet_socket,
    ping,
    pyvtep,
    segment,
    wait_until,
)
from tests.netns.test_privileges import READ, as_user
from tests.unit.test_exporter import Series, get, parse
from vtep.exporter.metrics import METRICS
from vtep.testing.lab import Host

URL = "http://127.0.0.1:9479/metrics"


@pytest.fixture
def export() -> Callable[..., "subprocess.Popen[Any]"]:
    """Return a function that starts an exporter on a host, and waits for its first line."""

    def starter(host: Host, *words: str) -> "subprocess.Popen[Any]":
        child = host.start(
            *(sys.executable, "-m", "vtep", "exporter", *words),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stderr is not None
        line = child.stderr.readline()
        while "serving" not in line and "writing" not in line:
            assert line, child.wait()
            line = child.stderr.readline()
        return child

    return starter


def fetch(url: str = URL) -> str:
    with urlopen(url, timeout=DEADLINE) as answer:
        assert answer.status == 200
        text: str = answer.read().decode()
    return text


def scrape() -> Series:
    return parse(fetch())


def is_up() -> bool:
    return get(scrape(), "pyvtep_up") == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")
def test_a_scrape_has_what_stats_shows_and_promtool_finds_no_fault(
    inside_a: Pair, tunnel: Tunnel, export: Callable[..., Any]
) -> None:
    a, b = inside_a
    vtep = tunnel[0]
    ping(a, "10.0.0.2", count=10)
    # Datagrams of a host that is no remote are dropped.
    address(b, "eth0", "192.0.2.9/24")
    vxlan = bytes.fromhex("0800000000000100") + bytes(60)
    with b.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("192.0.2.9", 0))
        for _ in range(5):
            stranger.sendto(vxlan, ("192.0.2.1", 4789))
    wait_until(lambda: vtep.client_counter("drop_source_unknown") == 5, "the drops")
    exporter = export(a, "--socket", str(vtep.control))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=fetch(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def agree() -> bool:
        # Frames may arrive at any time, such as neighbour discovery: only a quiet moment counts.
        before = json.loads(vtep.run("stats", "--json"))["total"]
        series = scrape()
        after = json.loads(vtep.run("stats", "--json"))["total"]
        if before["counters"] != after["counters"] or before["drops"] != after["drops"]:
            return False
        counters = before["counters"]
        for counter, name in (
            ("rx_frames", "pyvtep_receive_frames_total"),
            ("rx_bytes", "pyvtep_receive_bytes_total"),
            ("tx_frames", "pyvtep_transmit_frames_total"),
            ("tx_bytes", "pyvtep_transmit_bytes_total"),
            ("tx_datagrams", "pyvtep_transmit_datagrams_total"),
            ("fdb_learned", "pyvtep_fdb_learned_total"),
        ):
            assert get(series, name, vni="1") == counters[counter], name
        for reason, count in before["drops"].items():
            of_reason = [
                get(series, "pyvtep_drops_total", vni=v, reason=reason) for v in ("1", "none")
            ]
            assert sum(of_reason) == count, reason
        assert counters["rx_frames"] >= 10
        assert get(series, "pyvtep_drops_total", vni="1", reason="source_unknown") == 5
        return True

    wait_until(agree, "a moment without traffic")
    series = scrape()
    exposed = {name for name, _ in series}
    # Without EVPN there is nothing to say about it.
    expected = {each.name for each in METRICS if not each.name.startswith("pyvtep_evpn_")}
    assert expected - exposed <= {"pyvtep_remote_round_trip_seconds"}
    assert get(series, "pyvtep_vni_info", vni="1", device="vx0", bridge="") == 1
    assert get(series, "pyvtep_vni_state", vni="1", state="up") == 1
    assert get(series, "pyvtep_mtu_bytes", vni="1") == 1450
    remotes = {dict(labels)["remote"] for name, labels in series if "_remote_" in name}
    assert remotes == {"192.0.2.2", "other"}
    exporter.terminate()
    assert exporter.wait(DEADLINE) == 0


def test_scrapes_go_on_while_pyvtep_is_upgraded_stopped_and_started(
    inside_a: Pair, start: Start, export: Callable[..., Any], tmp_path: Path
) -> None:
    a, _ = inside_a
    words = [*segment(1, "192.0.2.2"), "--control", str(tmp_path / "a.sock")]
    exporter = export(a, "--socket", str(tmp_path / "a.sock"))
    assert not is_up()
    first = start(a, *words)
    first.control = tmp_path / "a.sock"
    with packet_socket(a, "vx0") as sender:
        for _ in range(20):
            sender.send(b"\xff" * 6 + b"\x02" + bytes(5) + b"\x88\xb5" + bytes(50))
    wait_until(lambda: first.client_counter("tx_frames") >= 20, "the frames")
    before = scrape()
    assert get(before, "pyvtep_transmit_frames_total", vni="1") >= 20
    first.run("upgrade")
    upgraded = scrape()  # By the new process, and without a failed scrape in between.
    started = "pyvtep_start_time_seconds"
    assert get(upgraded, started) == get(before, started)
    for (name, labels), value in before.items():
        if name.endswith("_total"):
            assert upgraded[name, labels] >= value, (name, labels)
    with first.client() as client:
        os.kill(client.status()["pid"], signal.SIGTERM)
    wait_until(lambda: not is_up(), "pyvtep to be down")
    start(a, *words)
    wait_until(is_up, "pyvtep to be up")
    again = scrape()
    assert get(again, started) > get(before, started)
    assert get(again, "pyvtep_transmit_frames_total", vni="1") < 20
    exporter.terminate()
    _, log = exporter.communicate(timeout=DEADLINE)
    assert exporter.returncode == 0
    assert [line.split()[2] for line in log.splitlines()] == ["no", "pyvtep", "no", "pyvtep"], log


def test_a_stopped_pyvtep_is_down_and_the_scrape_is_answered(
    inside_a: Pair, tunnel: Tunnel, export: Callable[..., Any]
) -> None:
    a, _ = inside_a
    export(a, "--socket", str(tunnel[0].control))
    assert is_up()
    tunnel[0].process.send_signal(signal.SIGSTOP)
    try:
        assert not is_up()
    finally:
        tunnel[0].process.send_signal(signal.SIGCONT)
    wait_until(is_up, "pyvtep to answer again")


def test_the_file_is_written_with_rights_to_read_only_and_removed_at_the_end(
    pair: Pair, start: Start, export: Callable[..., Any], tmp_path: Path
) -> None:
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2"), "--control", "auto", "--control-group", str(READ))
    path = tmp_path / "pyvtep.prom"
    exporter = export(a, "--textfile", str(path), "--interval", "1")

    def version() -> tuple[int, int]:
        at = path.stat()
        return at.st_ino, at.st_mtime_ns

    first = version()
    wait_until(lambda: version() != first, "the file to be written again")
    assert get(parse(path.read_text()), "pyvtep_up") == 1
    exporter.terminate()
    assert exporter.wait(DEADLINE) == 0
    assert not path.exists()

    folder = Path("/run/pyvtep/exported")
    folder.mkdir()
    folder.chmod(0o777)
    try:
        for groups, up in ((str(READ), 1), ("", 0)):
            path = folder / f"{up}.prom"
            done = as_user(a, 5000, groups, "exporter", "--textfile", str(path), "--once")
            assert done.returncode == 0, done.stderr
            assert get(parse(path.read_text()), "pyvtep_up") == up
        assert "as a member of the --control-group" in done.stderr
    finally:
        shutil.rmtree(folder)
    assert vtep.stop() == 0


def test_one_of_several_pyvteps_must_be_named_and_a_port_must_be_free(
    inside_a: Pair, start: Start, export: Callable[..., Any]
) -> None:
    a, _ = inside_a
    names = []
    for vni in (5, 6):
        options = ("--vni", str(vni), "--remote", "192.0.2.2", "--dstport", str(4784 + vni))
        start(a, *options, "--tap", f"vx{vni}", "--control", "auto")
        names.append(f"vni {vni} dev vx{vni} at /run/pyvtep/vx{vni}.sock")
    refused = pyvtep(a, "exporter")
    assert refused.returncode == 1
    assert all(name in refused.stderr for name in ("choose one with --socket PATH", *names))
    export(a, "--socket", "/run/pyvtep/vx5.sock")
    assert get(scrape(), "pyvtep_vni_info", vni="5", device="vx5", bridge="") == 1
    refused = pyvtep(a, "exporter", "--socket", "/run/pyvtep/vx6.sock")
    assert refused.returncode == 1
    assert "error: --listen 127.0.0.1:9479: the port is in use" in refused.stderr
    export(a, "--socket", "/run/pyvtep/vx6.sock", "--listen", "[::1]:9480")
    assert 'vni="6"' in fetch("http://[::1]:9480/metrics")


PROMETHEUS = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [pyvtep.rules.yml]
scrape_configs:
  - job_name: pyvtep
    static_configs: [{targets: ["127.0.0.1:9479"]}]
"""


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is missing")
def test_an_alert_fires_in_a_real_prometheus(
    inside_a: Pair, start: Start, export: Callable[..., Any], tmp_path: Path
) -> None:
    a, _ = inside_a
    config = tmp_path / "pyvtep.toml"
    config.write_text('[[vni]]\nid = 1\nremote = "192.0.2.2"\nfast-path = false\n')
    vtep: Pyvtep = start(a, "--config", str(config))
    export(a, "--socket", str(vtep.control))
    (tmp_path / "pyvtep.rules.yml").write_text(pyvtep(a, "exporter", "--print-rules").stdout)
    (tmp_path / "prometheus.yml").write_text(PROMETHEUS)
    with (tmp_path / "prometheus.log").open("w") as log:
        prometheus = a.start(
            *("prometheus", f"--config.file={tmp_path}/prometheus.yml"),
            *(f"--storage.tsdb.path={tmp_path}/data", "--web.listen-address=127.0.0.1:9090"),
            *("--web.enable-lifecycle", "--log.level=warn"),
            stdout=log,
            stderr=log,
        )

    def ask(what: str) -> Any:
        assert prometheus.poll() is None, (tmp_path / "prometheus.log").read_text()
        try:
            return json.loads(fetch(f"http://127.0.0.1:9090/api/v1/{what}"))["data"]
        except OSError:
            return None

    def firing() -> list[str]:
        alerts = (ask("alerts") or {"alerts": []})["alerts"]
        return [each["labels"]["alertname"] for each in alerts if each["state"] == "firing"]

    def is_scraped() -> bool:
        found = ask("query?query=pyvtep_config_last_reload_successful") or {"result": []}
        return [each["value"][1] for each in found["result"]] == ["1"]

    try:
        wait_until(is_scraped, "a scrape", 2 * DEADLINE)
        assert firing() == []
        config.write_text("[[vni]]\nid = 'one'\n")
        assert vtep.run("reload", code=2)
        wait_until(lambda: firing() == ["PyvtepReloadFailed"], "the alert", 2 * DEADLINE)
        # Another one may be pending: the remote refuses datagrams, as no VTEP runs there.
        (alert,) = (each for each in ask("alerts")["alerts"] if each["state"] == "firing")
        assert alert["annotations"]["summary"].startswith("127.0.0.1:9479: the configuration")
        config.write_text('[[vni]]\nid = 1\nremote = "192.0.2.2"\nfast-path = false\n')
        vtep.run("reload")
        wait_until(lambda: firing() == [], "the end of the alert", 2 * DEADLINE)
    finally:
        prometheus.terminate()
        prometheus.wait(DEADLINE)
