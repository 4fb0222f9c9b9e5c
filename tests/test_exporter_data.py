"""The alert rules and the dashboard: promtool parses them, and each alert fires when it should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from attrs import frozen
from click.testing import CliRunner

from vtep.cli.main import cli
from vtep.counters import BY_DESIGN, Drop
from vtep.exporter.metrics import METRICS, SCRAPE_DURATION, UP

EXPOSED = {metric.name: metric for metric in (UP, SCRAPE_DURATION, *METRICS)}

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is missing"
)


def printed(option: str) -> str:
    """Return what the exporter prints for its users."""
    done = CliRunner().invoke(cli, ["exporter", option], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "pyvtep.rules.yml"
    path.write_text(printed("--print-rules"))
    return path


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(printed("--print-dashboard")))


def promtool(*words: str | Path) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def rule_parts(rules: Path) -> dict[str, dict[str, str]]:
    """Return expression, summary and description of each alert."""
    parts = {}
    for block in rules.read_text().split("- alert: ")[1:]:
        pairs = re.findall(r"^ +(expr|summary|description): (.*)$", block, re.MULTILINE)
        parts[block.split()[0]] = dict(pairs)
    return parts


# --- alerts -------------------------------------------------------------------------------------


@frozen
class Case:
    """Series for which an alert fires at a time, and others for which it does not."""

    fires: Mapping[str, str]
    at: str
    labels: str
    """Those of the alert, beside its name, state and severity."""
    quiet: Mapping[str, str]


I = 'instance="h1"'  # noqa: E741  it is everywhere
V = f'{I}, vni="7"'
R = f'{V}, remote="192.0.2.2"'

CASES = {
    "PyvtepDown": Case(
        {f"pyvtep_up{{{I}}}": "1 0 0 0"}, "3m", I, {f"pyvtep_up{{{I}}}": "1 0 1 0 1 1"}
    ),
    "PyvtepRestarting": Case(
        {f"pyvtep_start_time_seconds{{{I}}}": "0+60x10"},
        "10m",
        I,
        {f"pyvtep_start_time_seconds{{{I}}}": "5 5 5 400 400 900 900 900 900 900 900"},
    ),
    "PyvtepPortDown": Case(
        {f'pyvtep_vni_state{{{V}, state="missing"}}': "0 1 1 1 1"},
        "4m",
        f'{V}, state="missing"',
        {
            f'pyvtep_vni_state{{{V}, state="waiting"}}': "1x10",
            f'pyvtep_vni_state{{{V}, state="down"}}': "0 1 0 1 0",
        },
    ),
    "PyvtepUnderlayMissing": Case(
        {f'pyvtep_vni_state{{{V}, state="waiting"}}': "1x10"},
        "6m",
        f'{V}, state="waiting"',
        {f'pyvtep_vni_state{{{V}, state="waiting"}}': "1 1 1 0 0 0 0 0"},
    ),
    "PyvtepRemoteSilent": Case(
        {f'pyvtep_remote_liveness{{{R}, state="silent"}}': "0 1 1 1"},
        "3m",
        f'{R}, state="silent"',
        {f'pyvtep_remote_liveness{{{R}, state="never-seen"}}': "1x10"},
    ),
    "PyvtepRemoteRefused": Case(
        {f'pyvtep_remote_liveness{{{R}, state="refused"}}': "0 1 1 1"},
        "3m",
        f'{R}, state="refused"',
        {f'pyvtep_remote_liveness{{{R}, state="refused"}}': "0 1 0 0"},
    ),
    "PyvtepDrops": Case(
        {f'pyvtep_drops_total{{{V}, reason="source_unknown"}}': "0+120x30"},
        "20m",
        f'{V}, reason="source_unknown"',
        {
            f'pyvtep_drops_total{{{V}, reason="source_unknown"}}': "0+30x30",
            **{
                f'pyvtep_drops_total{{{V}, reason="{reason}"}}': "0+6000x30"
                for reason in Drop
                if reason in BY_DESIGN or reason.startswith(("storm_", "loop_"))
            },
        },
    ),
    "PyvtepStorm": Case(
        {f'pyvtep_problems{{{V}, problem="storm"}}': "0 1 1 1"},
        "3m",
        f'{V}, problem="storm"',
        {f'pyvtep_problems{{{V}, problem="storm"}}': "0 1 0 0"},
    ),
    "PyvtepLoop": Case(
        {f'pyvtep_problems{{{V}, problem="loop"}}': "0 1"},
        "1m",
        f'{V}, problem="loop"',
        {f'pyvtep_problems{{{V}, problem="storm"}}': "1x5"},
    ),
    "PyvtepMacsMoving": Case(
        {f"pyvtep_fdb_moved_total{{{V}}}": "0+120x20"},
        "15m",
        V,
        {f"pyvtep_fdb_moved_total{{{V}}}": "0+30x20"},
    ),
    "PyvtepFdbNearLimit": Case(
        {f"pyvtep_fdb_entries{{{V}}}": "95x10", f"pyvtep_fdb_limit_entries{{{V}}}": "100x10"},
        "6m",
        V,
        {
            f"pyvtep_fdb_entries{{{V}}}": "85x10",
            f"pyvtep_fdb_limit_entries{{{V}}}": "100x10",
            f'pyvtep_fdb_entries{{{I}, vni="8"}}': "1000000x10",  # It has no limit.
        },
    ),
    "PyvtepFdbNotLearning": Case(
        {f'pyvtep_fdb_not_learned_frames_total{{{V}, limit="remote"}}': "0+1x20"},
        "15m",
        f'{V}, limit="remote"',
        {f'pyvtep_fdb_not_learned_frames_total{{{V}, limit="vni"}}': "5x20"},
    ),
    "PyvtepReloadFailed": Case(
        {f"pyvtep_config_last_reload_successful{{{I}}}": "1 0"},
        "1m",
        I,
        {f"pyvtep_config_last_reload_successful{{{I}}}": "0 1 1"},
    ),
    "PyvtepMtuTooLarge": Case(
        {f"pyvtep_mtu_bytes{{{V}}}": "1500x20", f"pyvtep_underlay_mtu_bytes{{{V}}}": "1500x20"},
        "16m",
        V,
        {f"pyvtep_mtu_bytes{{{V}}}": "1450x20", f"pyvtep_underlay_mtu_bytes{{{V}}}": "1500x20"},
    ),
    "PyvtepPathMtuFell": Case(
        {f"pyvtep_remote_path_mtu_bytes{{{R}}}": "1500 1500 1400x30"},
        "20m",
        R,
        {f"pyvtep_remote_path_mtu_bytes{{{R}}}": "1400 1400 1500x30"},
    ),
    "PyvtepFastPathFailed": Case(
        {f'pyvtep_problems{{{V}, problem="fast-path-failed"}}': "0 1 1 1"},
        "3m",
        f'{V}, problem="fast-path-failed"',
        {f'pyvtep_fast_path_state{{{V}, state="off"}}': "1x5"},  # By --no-fast-path.
    ),
    "PyvtepEvpnSpeakerFailed": Case(
        {f'pyvtep_evpn_speaker_state{{{I}, state="running"}}': "1 0 0 0 0"},
        "3m",
        f'{I}, state="running"',
        {f'pyvtep_evpn_speaker_state{{{I}, state="running"}}': "1 1 1 1 1"},
    ),
    "PyvtepEvpnSessionDown": Case(
        {f'pyvtep_evpn_session_state{{{I}, neighbor="10.0.0.1", state="established"}}': "1 0x5"},
        "4m",
        f'{I}, neighbor="10.0.0.1", state="established"',
        {f'pyvtep_evpn_session_state{{{I}, neighbor="10.0.0.1", state="established"}}': "0 1x5"},
    ),
    "PyvtepEvpnNoRoutes": Case(
        {f'pyvtep_problems{{{V}, problem="evpn-no-routes"}}': "1x9"},
        "7m",
        f'{V}, problem="evpn-no-routes"',
        {f'pyvtep_problems{{{V}, problem="evpn-no-routes"}}': "1 1 0x9"},
    ),
    "PyvtepEvpnDuplicateMac": Case(
        {f"pyvtep_evpn_duplicate_macs{{{V}}}": "0 1 1 1"},
        "3m",
        V,
        {f"pyvtep_evpn_duplicate_macs{{{V}}}": "0x5"},
    ),
}


def test_the_rules_are_valid_and_name_only_metrics_that_exist(rules: Path) -> None:
    assert f"SUCCESS: {len(CASES)} rules found" in promtool("check", "rules", rules)
    parts = rule_parts(rules)
    assert parts.keys() == CASES.keys()
    for alert, part in parts.items():
        used = metrics_in(part["expr"])
        assert used, alert
        # The texts show labels that the alert has.
        shown = re.findall(r"\$labels\.(\w+)", part["summary"] + part["description"])
        assert set(shown) <= {"instance"}.union(*(EXPOSED[name].labels for name in used)), alert


def test_drops_by_design_raise_no_alert(rules: Path) -> None:
    (excluded,) = re.findall(r'reason!~"(.*?)"', rule_parts(rules)["PyvtepDrops"]["expr"])
    silent = {reason for reason in Drop if re.fullmatch(excluded, reason)}
    assert silent >= BY_DESIGN
    assert {
        reason for reason in silent - BY_DESIGN if not reason.startswith(("storm", "loop"))
    } == (set())


def test_each_alert_fires_and_does_not_fire(rules: Path, tmp_path: Path) -> None:
    tests: list[dict[str, Any]] = []
    for alert, case in CASES.items():
        for series, fires in ((case.fires, True), (case.quiet, False)):
            tests.append(
                {
                    "name": f"{alert} {'fires' if fires else 'does not fire'}",
                    "interval": "1m",
                    "input_series": [
                        {"series": name, "values": values} for name, values in series.items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": f'sum without (severity) (ALERTS{{alertname="{alert}", '
                            'alertstate="firing"})',
                            "eval_time": case.at,
                            "exp_samples": [
                                {
                                    "labels": f'{{alertname="{alert}", alertstate="firing", '
                                    f"{case.labels}}}",
                                    "value": 1,
                                }
                            ]
                            if fires
                            else [],
                        }
                    ],
                }
            )
    file = tmp_path / "test.yml"  # JSON is YAML.
    file.write_text(json.dumps({"rule_files": [str(rules)], "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", file)


# --- the dashboard ------------------------------------------------------------------------------


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each expression of a dashboard with the title of its place."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            (vector,) = re.findall(r"^label_values\((.*), \w+\)$", variable["query"]["query"])
            yield variable["name"], vector


def metrics_in(expr: str) -> set[str]:
    """Return the metrics in an expression, all of which must be exposed."""
    found = set(re.findall(r"\bpyvtep_\w+", expr))
    assert found <= EXPOSED.keys(), expr
    return found


def test_prometheus_parses_every_expression_of_the_dashboard(
    dashboard: dict[str, Any], tmp_path: Path
) -> None:
    found = list(expressions(dashboard))
    values = {"$__rate_interval": "1m", "$__range": "3h"}
    variables = {f"${each['name']}": ".*" for each in dashboard["templating"]["list"]}
    recorded = []
    for number, (title, expr) in enumerate(found):
        for name, value in {**values, **variables}.items():
            expr = re.sub(re.escape(name) + r"\b", value, expr)  # noqa: PLW2901
        assert "$" not in expr, (title, expr)
        recorded.append({"record": f"expr:{number}", "expr": expr})
    file = tmp_path / "expressions.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", file)


def test_the_dashboard_uses_only_metrics_and_labels_that_exist(dashboard: dict[str, Any]) -> None:
    used: set[str] = set()
    for title, expr in expressions(dashboard):
        found = metrics_in(expr)
        assert found, title
        used |= found
        for name, selector in re.findall(r"\b(pyvtep_\w+)\{(.*?)\}", expr):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector))
            assert labels <= {"job", "instance", *EXPOSED[name].labels}, (title, name)
    # What an operator looks at first is there.
    for subject in ("up", "drops", "fdb", "mtu", "superframes", "remote", "vni", "problems"):
        assert any(re.match(rf"pyvtep_.*{subject}|pyvtep_{subject}", name) for name in used)


def test_the_dashboard_can_be_imported_anywhere(dashboard: dict[str, Any]) -> None:
    """A classic dashboard: without an id of its own, and with the data source as a variable."""
    assert dashboard["id"] is None
    assert dashboard["uid"] == "pyvtep"
    assert dashboard["schemaVersion"] >= 36
    names = [each["name"] for each in dashboard["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "vni", "remote"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        pos = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(pos["x"], pos["x"] + pos["w"])
            for y in range(pos["y"], pos["y"] + pos["h"])
        }
        assert not covered & cells, panel["title"]
        assert max(x for x, _ in covered) < 24
        cells |= covered
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert "[5m]" not in target["expr"]
            assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]
