"""The exporter: its metrics from a status, its server, its file, and its command line."""

import os
import re
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from attrs import fields
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit import evpn_fake
from tests.unit.status_fake import (
    NOW,
    STARTED,
    FakeClient,
    advanced,
    counters,
    drops,
    remote,
    segment,
    status,
)
from vtep.cli.main import cli
from vtep.control.schema import RemoteStatus, Status
from vtep.counters import Counters, Drop
from vtep.errors import ConfigError, VtepError, shown
from vtep.exporter import server as server_module
from vtep.exporter import textfile
from vtep.exporter.collector import StatusCollector, registry_of
from vtep.exporter.metric import NO_VNI
from vtep.exporter.metrics import (
    FAST_PATH_STATES,
    LIVENESS,
    METRICS,
    OTHER,
    PORT_STATES,
    PROBLEMS,
    SCRAPE_DURATION,
    UP,
)
from vtep.exporter.other_hosts import OtherHosts
from vtep.exporter.server import MetricsServer
from vtep.exporter.source import StatusSource
from vtep.fastpath.state import FastPathStatus

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""The value of each series, by its name and its labels, sorted."""


def registry(read: Callable[[], Status]) -> CollectorRegistry:
    return registry_of(StatusCollector(read, lambda _: None))


def parse(text: str) -> Series:
    """Parse a scrape. No series may be there twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def scrape(of: Status | Callable[[], Status]) -> Series:
    read = of if callable(of) else lambda: of
    return parse(generate_latest(registry(read)).decode())


def get(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


# --- values -------------------------------------------------------------------------------------


def test_every_metric_is_exposed_with_its_labels_and_type() -> None:
    evpn = evpn_fake.status(not_installed={"refused": 1})
    text = generate_latest(registry(lambda: status(evpn=evpn))).decode()
    series = parse(text)
    for metric in (UP, SCRAPE_DURATION, *METRICS):
        of_metric = [labels for name, labels in series if name == metric.name]
        assert of_metric, metric.name
        assert {tuple(sorted(metric.labels))} == {
            tuple(name for name, _ in labels) for labels in of_metric
        }
        kind = "gauge" if metric.kind == "info" else metric.kind
        assert f"# TYPE {metric.name} {kind}\n" in text
        assert metric.help.endswith(".")
    assert names(series) == {metric.name for metric in (UP, SCRAPE_DURATION, *METRICS)}


def test_values_are_those_of_the_status() -> None:
    series = scrape(status())
    vni, of_remote = {"vni": "10"}, {"vni": "10", "remote": "192.0.2.2"}
    for name, labels, value in (
        ("pyvtep_up", {}, 1),
        ("pyvtep_build_info", {"version": "0.14.0"}, 1),
        ("pyvtep_start_time_seconds", {}, STARTED),
        ("pyvtep_config_last_reload_successful", {}, 1),
        ("pyvtep_config_last_reload_timestamp_seconds", {}, NOW - 600),
        ("pyvtep_vni_info", {**vni, "device": "vx10", "bridge": "br10"}, 1),
        ("pyvtep_vni_info", {"vni": "20", "device": "vx20", "bridge": ""}, 1),
        ("pyvtep_vni_state", {"vni": "20", "state": "down"}, 1),
        ("pyvtep_vni_state", {"vni": "20", "state": "up"}, 0),
        ("pyvtep_fast_path_state", {**vni, "state": "on"}, 1),
        ("pyvtep_receive_bytes_total", vni, 4_010_000),
        ("pyvtep_fdb_limit_entries", vni, 100_000),
        ("pyvtep_drops_total", {**vni, "reason": "source_unknown"}, 7),
        ("pyvtep_drops_total", {**vni, "reason": "congestion"}, 0),
        ("pyvtep_drops_total", {"vni": NO_VNI, "reason": "vni_unknown"}, 3),
        ("pyvtep_problems", {**vni, "problem": "storm"}, 1),
        ("pyvtep_problems", {"vni": NO_VNI, "problem": "reload-failed"}, 0),
        ("pyvtep_remote_liveness", {"state": "silent", "vni": "10", "remote": "192.0.2.3"}, 1),
        ("pyvtep_remote_last_seen_timestamp_seconds", of_remote, NOW - 1),
        (
            "pyvtep_remote_last_seen_timestamp_seconds",
            {"vni": "10", "remote": "2001:db8::4"},
            0,
        ),
        ("pyvtep_remote_receive_bytes_total", of_remote, 4_000_000),
        ("pyvtep_remote_fdb_entries", {"vni": "20", "remote": OTHER}, 3),
    ):
        assert get(series, name, **labels) == value, (name, labels)
    assert ("pyvtep_fdb_limit_entries", (("vni", "20"),)) not in series  # It has no limit.


def test_every_counter_and_every_state_has_its_series() -> None:
    """Also those that have counted nothing yet, for `rate` misses the first value of a series."""
    known = [each.name for each in fields(Counters) if "unit" in each.metadata]
    numbers = {name: 1000 + number for number, name in enumerate(known)}
    # Of no VNI, as one call receives datagrams for several, and an echo message is about a host.
    of_none = ("rx_syscalls", "echo_requests_answered", "echo_replies_received")
    total = {name: numbers.pop(name) for name in of_none}
    series = scrape(
        status(
            segments=[segment(7, counters=counters(**numbers), drops=drops())],
            drops=drops(),
            counters=counters(**total),
            problems=[],
        )
    )
    assert {*numbers.values(), *total.values()} <= set(series.values())
    for name, label, values in (
        ("pyvtep_drops_total", "reason", [str(reason) for reason in Drop]),
        ("pyvtep_problems", "problem", PROBLEMS),
    ):
        for vni in ("7", NO_VNI):
            assert [get(series, name, vni=vni, **{label: each}) for each in values] == [0.0] * len(
                values
            )
    assert set(map(str, FastPathStatus)) == set(FAST_PATH_STATES)
    for name, states in (
        ("pyvtep_vni_state", PORT_STATES),
        ("pyvtep_fast_path_state", FAST_PATH_STATES),
    ):
        assert sum(get(series, name, vni="7", state=state) for state in states) == 1
    live = [
        get(series, "pyvtep_remote_liveness", vni="7", remote="192.0.2.3", state=state)
        for state in LIVENESS
    ]
    assert live == [0, 1, 0, 0]


def test_values_of_evpn_are_there_with_it_only() -> None:
    assert not {name for name in names(scrape(status())) if name.startswith("pyvtep_evpn")}
    evpn = evpn_fake.status(
        speaker=evpn_fake.speaker(restarts=2),
        sessions=[evpn_fake.session(), evpn_fake.down("fe80::9%eth0")],
        segments=[evpn_fake.segment(), evpn_fake.segment(200, moves=0)],
        duplicates=[evpn_fake.duplicate()],
        unmatched=[evpn_fake.unmatched(), evpn_fake.unmatched("65001:201")],
        ignored={"1": 2, "5": 3},
        not_installed={"refused": 7},
    )
    series = scrape(status(evpn=evpn))
    for name, labels, value in (
        ("speaker_state", {"state": "running"}, 1),
        ("speaker_state", {"state": "failed"}, 0),
        ("speaker_restarts_total", {}, 2),
        ("routes_ignored", {}, 5),
        ("routes_not_installed", {"reason": "refused"}, 7),
        ("vteps_not_imported", {}, 1),
        ("session_state", {"neighbor": "10.0.0.1", "state": "established"}, 1),
        ("session_state", {"neighbor": "fe80::9%eth0", "state": "established"}, 0),
        ("session_state", {"neighbor": "fe80::9%eth0", "state": "active"}, 1),
        ("session_received_routes", {"neighbor": "10.0.0.1"}, 12),
        ("session_announced_routes", {"neighbor": "10.0.0.1"}, 4),
        ("vteps", {"vni": "100"}, 2),
        ("remote_macs", {"vni": "100"}, 5),
        ("announced_routes", {"vni": "200"}, 4),
        ("moves_total", {"vni": "100"}, 1),
        ("duplicate_macs", {"vni": "100"}, 1),
        ("duplicate_macs", {"vni": "200"}, 0),
    ):
        assert get(series, f"pyvtep_evpn_{name}", **labels) == value, (name, labels)


def test_a_daemon_of_a_newer_version_may_have_more_states_reasons_and_problems() -> None:
    newer = segment(7, state="asleep", drops={**drops(), "new_reason": 5})
    newer["remotes"] = []
    problem = {"problem": "new-problem", "vni": 7, "remote": None, "text": ""}
    series = scrape(status(segments=[newer], problems=[problem]))
    assert get(series, "pyvtep_vni_state", vni="7", state="asleep") == 1
    assert get(series, "pyvtep_drops_total", vni="7", reason="new_reason") == 5
    assert get(series, "pyvtep_problems", vni="7", problem="new-problem") == 1


def test_without_an_answer_pyvtep_is_down_and_the_scrape_succeeds() -> None:
    fake = FakeClient()
    fake.is_down = True
    series = scrape(fake.status)
    assert names(series) == {"pyvtep_up", "pyvtep_scrape_duration_seconds"}
    assert get(series, "pyvtep_up") == 0
    said: list[str] = []
    strange = cast("Status", {"version": "9", "started": 1.0, "segments": []})
    made = generate_latest(registry_of(StatusCollector(lambda: strange, said.append)))
    assert get(parse(made.decode()), "pyvtep_up") == 0
    assert "of the same version" in said[0]


@given(
    st.text(min_size=1, max_size=20),
    st.text(max_size=20),
    st.text(max_size=20),
    st.text(max_size=9),
)
def test_odd_characters_in_labels_are_escaped(dev: str, bridge: str, via: str, vers: str) -> None:
    """A device may have any name but for a slash and white space, and a daemon any version."""
    odd = segment(7, dev=dev, bridge=bridge, remotes=[remote("192.0.2.2", underlay_dev=via)])
    series = scrape(status(segments=[odd], version=vers))
    assert get(series, "pyvtep_vni_info", vni="7", device=dev, bridge=bridge) == 1
    assert get(series, "pyvtep_remote_info", vni="7", remote="192.0.2.2", device=via) == 1
    assert get(series, "pyvtep_build_info", version=vers) == 1


# --- cardinality, and counters that only grow ---------------------------------------------------


def test_senders_make_no_series() -> None:
    hosts = [remote(f"198.51.100.{n}", is_configured=False) for n in range(250)]
    few = status(segments=[segment(7, remotes=[remote()])])
    many = status(segments=[segment(7, remotes=[remote(), *hosts])])
    assert scrape(few).keys() == scrape(many).keys()


HOSTS = st.dictionaries(
    st.sampled_from(["192.0.2.2", "192.0.2.3", "192.0.2.4"]),
    st.tuples(st.booleans(), st.integers(0, 100)),
)
"""The hosts of a VNI in a status: whether each is configured, and by how many frames it grew."""


@given(st.lists(HOSTS, min_size=2, max_size=8), st.integers(0, 7))
def test_the_sum_over_other_hosts_only_grows_and_has_each_frame_once(
    steps: list[dict[str, tuple[bool, int]]], restart: int
) -> None:
    """Whatever hosts come, are configured, are forgotten, and whenever the daemon is restarted."""
    others, frames, last, expected = OtherHosts(), dict.fromkeys(("192.0.2.2",), 0), 0, 0
    started = 1.0
    for number, step in enumerate(steps):
        if number == restart:
            frames, started = {}, started + 1
        frames = {host: frames.get(host, 0) + grown for host, (_, grown) in step.items()}
        rows = [
            _traffic(host, frames[host], is_configured=is_configured)
            for host, (is_configured, _) in step.items()
        ]
        sums = others.update(status(segments=[segment(7, remotes=rows)], started=started))[7]
        if number:
            expected += sum(grown for is_configured, grown in step.values() if not is_configured)
        assert sums["rx_frames"] == expected >= last
        assert sums["tx_bytes"] == 100 * expected
        last = expected


def _traffic(host: str, frames: int, *, is_configured: bool) -> RemoteStatus:
    return remote(
        host,
        is_configured=is_configured,
        rx_frames=frames,
        rx_bytes=100 * frames,
        tx_frames=frames,
        tx_bytes=100 * frames,
    )


def test_counters_grow_from_scrape_to_scrape() -> None:
    fake = FakeClient()
    exported = registry(fake.status)
    first, second = (parse(generate_latest(exported).decode()) for _ in range(2))
    assert first.keys() == second.keys()
    for (name, labels), value in first.items():
        if name.endswith("_total"):
            assert second[name, labels] >= value
    assert (
        get(second, "pyvtep_receive_bytes_total", vni="10")
        - get(first, "pyvtep_receive_bytes_total", vni="10")
        == 1_000_000
    )


# --- the connection -----------------------------------------------------------------------------


def test_the_source_connects_again_and_says_each_change_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemons: list[FakeClient] = []
    said: list[str] = []

    def connect(*_: object, **__: object) -> FakeClient:
        if not daemons:
            raise VtepError("no pyvtep answers there")
        return daemons[-1]

    monkeypatch.setattr("vtep.control.reconnect.Client", connect)
    source = StatusSource("/run/x.sock", said.append)
    for _ in range(2):
        with pytest.raises(VtepError, match="no pyvtep"):
            source.status()
    daemons.append(FakeClient())
    source.status()
    source.status()
    assert daemons[0].calls == 2
    daemons[0].is_down = True
    daemons.append(FakeClient())
    source.status()  # At once by the new process, without a failed scrape.
    assert daemons[0].is_closed
    daemons[1].is_down = True
    with pytest.raises(VtepError, match="no pyvtep"):
        source.status()
    assert [line.split(":")[0] for line in said] == [
        "no status",
        "pyvtep 0.14.0 answers at /run/x.sock",
        "no status",
    ]


# --- HTTP ---------------------------------------------------------------------------------------


@contextmanager
def serving(
    listen: str = "127.0.0.1:0", read: Callable[[], Status] = status
) -> Iterator[MetricsServer]:
    with MetricsServer(listen, registry(read)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=60) as answer:
        body: str = answer.read().decode()
    return body


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_the_server_serves_metrics_in_both_formats_and_a_page_with_the_link(listen: str) -> None:
    with serving(listen) as server:
        assert get(parse(fetch(server.url)), "pyvtep_up") == 1
        text = fetch(server.url, Accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert "# TYPE pyvtep_receive_bytes counter\n" in text
        chosen = parse(fetch(server.url + "?name[]=pyvtep_up"))
        assert names(chosen) == {"pyvtep_up"}
        root = server.url.removesuffix("metrics")
        assert '<a href="/metrics">' in fetch(root)
        with pytest.raises(HTTPError, match="404"):
            fetch(root + "other")


def test_clients_that_send_nothing_or_read_nothing_block_no_scrape() -> None:
    with serving() as server:
        address = ("127.0.0.1", server.server_port)
        idle = [socket.create_connection(address) for _ in range(100)]
        try:
            for half in idle[::2]:
                half.sendall(b"GET /metrics HT")
            for _ in range(3):
                assert get(parse(fetch(server.url)), "pyvtep_up") == 1
            # The oldest ones were closed for newer ones: a bounded number of threads.
            idle[0].settimeout(60)
            with suppress(ConnectionResetError):
                assert idle[0].recv(1) == b""
        finally:
            for each in idle:
                each.close()


def test_a_connection_that_is_too_old_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_AGE_MAX_S", 0.0)
    with (
        serving() as server,
        socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as idle,
    ):
        assert idle.recv(1) == b""


def test_a_scrape_does_not_wait_for_ever_behind_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vtep.exporter.collector._QUEUE_S", 0.01)
    release, hangs = threading.Event(), threading.Event()

    def hang() -> Status:
        hangs.set()
        assert release.wait(60)
        return status()

    with serving(read=hang) as server:
        results: list[str] = []
        first = threading.Thread(target=lambda: results.append(fetch(server.url)))
        first.start()
        assert hangs.wait(60)
        assert get(parse(fetch(server.url)), "pyvtep_up") == 0
        release.set()
        first.join()
        assert get(parse(results[0]), "pyvtep_up") == 1


@pytest.mark.parametrize(
    ("listen", "kind", "message"),
    [
        ("9479", ConfigError, "is not ADDRESS:PORT, such as 127.0.0.1:9479"),
        ("", ConfigError, "such as 127.0.0.1:9479"),
        ("::1:9479", ConfigError, "such as 127.0.0.1:9479 or [::1]:9479"),
        ("127.0.0.1:http", ConfigError, "'http' is no port number"),
        ("127.0.0.1:65536", ConfigError, "from 0 to 65535"),
        ("127.0.0.1:1_0", ConfigError, "no port number"),
        (":9479", ConfigError, "for all of this host: 0.0.0.0:9479, or [::]:9479"),
        ("192.0.2.77:9479", VtepError, "no device of this host has that address"),
        ("[fe80::1%none]:9479", VtepError, "unknown address"),
    ],
)
def test_an_address_that_cannot_be_listened_on(
    listen: str, kind: type[VtepError], message: str
) -> None:
    with pytest.raises(VtepError) as caught:
        MetricsServer(listen, registry(status))
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--listen {shown(listen)}: ")


def test_a_port_in_use() -> None:
    with serving() as server, pytest.raises(VtepError, match="port is in use"):
        MetricsServer(f"127.0.0.1:{server.server_port}", registry(status))


# --- the file -----------------------------------------------------------------------------------


def test_the_file_is_replaced_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.prom"
    before = os.umask(0o077)
    try:
        textfile.write(path, registry(status))
        with path.open() as old:
            later = advanced(status())
            textfile.write(path, registry(lambda: later))
            assert get(parse(old.read()), "pyvtep_receive_frames_total", vni="10") == 4100
    finally:
        os.umask(before)
    assert get(parse(path.read_text()), "pyvtep_receive_frames_total", vni="10") == 5100
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [*tmp_path.iterdir()] == [path]
    textfile.remove(path)
    textfile.remove(path)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(VtepError, match=r"--textfile .*pyvtep\.prom: cannot write it: No such"):
        textfile.write(tmp_path / "none/pyvtep.prom", registry(status))
    (tmp_path / "taken").mkdir()
    with pytest.raises(VtepError, match="taken: is not a regular file"):
        textfile.write(tmp_path / "taken", registry(status))
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):  # As /dev/stdout is a link, and /dev/null no regular file either.
        with pytest.raises(VtepError, match=f"{name}: is not a regular file; name a new file"):
            textfile.write(tmp_path / name, registry(status))
        textfile.remove(tmp_path / name)
    assert {each.name for each in tmp_path.iterdir()} == {"taken", "target", "link", "fifo"}


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--once", "--interval and --once belong to --textfile PATH"),
        ("--interval 5", "belong to --textfile"),
        ("--textfile a.prom --listen 127.0.0.1:0", "exclude each other"),
        ("--textfile a.prom --once --interval 5", "exclude each other"),
        ("--textfile a.prom --interval 0", "0.0 is not in the range"),
        (
            "--textfile - --once",
            "--textfile -: is no name of a file; name one, as in: --textfile /",
        ),
        ("--textfile= --once", "--textfile '': is no name of a file"),
        ("--print-rules --print-dashboard", "one file each"),
    ],
)
def test_options_that_contradict_each_other(words: str, message: str) -> None:
    done = CliRunner().invoke(cli, ["exporter", *words.split()])
    assert done.exit_code == 2
    assert message in done.output


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("collector", "server", "textfile"):
        monkeypatch.delitem(sys.modules, f"vtep.exporter.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    done = CliRunner().invoke(cli, ["exporter", "--socket", "/nonexistent.sock"])
    assert isinstance(done.exception, VtepError)
    assert re.search(r"scripts/setup --extra metrics, or .* '\.\[metrics\]'", str(done.exception))
    assert CliRunner().invoke(cli, ["exporter", "--print-rules"]).exit_code == 0


def test_one_scrape_into_a_file_while_no_pyvtep_runs(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.prom"
    words = ["exporter", "--textfile", str(path), "--once", "--socket", str(tmp_path / "no.sock")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "no status: " in done.stderr
    assert get(parse(path.read_text()), "pyvtep_up") == 0


# --- the documentation --------------------------------------------------------------------------


def test_the_page_has_every_metric_and_every_alert() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(pyvtep_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    plain = [(name, kind, re.findall(r"\w+", labels)) for name, kind, labels, _ in rows]
    assert plain == [
        (metric.name, metric.kind, list(metric.labels))
        for metric in (UP, SCRAPE_DURATION, *METRICS)
    ]
    for metric, (*_, meaning) in zip((UP, SCRAPE_DURATION, *METRICS), rows, strict=True):
        assert meaning.replace("`", "") + "." == metric.help
    rules = CliRunner().invoke(cli, ["exporter", "--print-rules"]).stdout
    alerts = re.findall(
        r"- alert: (\w+)\n +expr: .*\n(?: +for: (\w+)\n)? +labels:\n +severity: (\w+)", rules
    )
    listed = re.findall(r"^\| `(Pyvtep\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    assert len(alerts) == rules.count("- alert:")
    assert listed == [(name, severity, after or "at once") for name, after, severity in alerts]
