"""`pyvtep evpn`: its words, and its output with a speaker that gives fixed answers."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.unit import evpn_fake, status_fake
from tests.unit.evpn_fake import MAC
from vtep.cli.main import cli
from vtep.control.evpn_schema import EVPN_VIEWS, EvpnStatus
from vtep.control.socket_files import speaker_socket
from vtep.errors import VtepError

Answers = dict[str, Callable[[dict[str, Any]], object]]


@contextmanager
def serving(path: Path, answers: Answers) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Answer JSON-RPC requests on a Unix socket. Yields: the methods and parameters called."""
    called: list[tuple[str, dict[str, Any]]] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer_all() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as lines:
                for line in lines:
                    request = json.loads(line)
                    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
                    method, params = request["method"], request.get("params", {})
                    answer["result"] = True
                    if method != "ping":
                        called.append((method, params))
                        answer["result"] = answers[method](params)
                    lines.write(json.dumps(answer).encode() + b"\n")
                    lines.flush()

    thread = threading.Thread(target=answer_all)
    thread.start()
    try:
        yield called
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class Pyvtep:
    """A daemon and its speaker with fixed answers, and the commands that ask them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.path = folder / "vx0.sock"
        self.evpn: EvpnStatus | None = evpn_fake.status()
        self.views: dict[str, object] = {
            "summary": evpn_fake.summary(),
            "sessions": [evpn_fake.session()],
            "routes": [
                evpn_fake.route(),
                evpn_fake.route(type=3, mac=None, neighbor=None),
                evpn_fake.route(vni=None, best=False, reason="route-target"),
            ],
            "macs": [evpn_fake.mac(), evpn_fake.mac(vtep=None, sticky=True, state="held")],
            "vteps": [evpn_fake.vtep(), evpn_fake.vtep("192.0.2.4", flood=False, stale=True)],
            "moves": [evpn_fake.move()],
            "duplicates": [evpn_fake.duplicate()],
        }
        self.cleared = 1
        self.daemon_calls = stack.enter_context(
            serving(
                self.path,
                {
                    "status": lambda _: status_fake.status(evpn=self.evpn),
                    "evpn.restart": lambda _: {"pid": 77},
                },
            )
        )
        self._stack = stack
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def start_speaker(self) -> None:
        """Make the speaker answer at its own socket."""
        self.calls = self._stack.enter_context(
            serving(
                speaker_socket(self.path),
                {
                    "evpn.show": lambda params: self.views[params["what"]],
                    "evpn.clear": lambda _: {"cleared": self.cleared},
                },
            )
        )

    def run(self, words: str) -> Result:
        return CliRunner().invoke(
            cli, ["evpn", *words.split(), "--socket", str(self.path)], standalone_mode=False
        )


@pytest.fixture
def pyvtep(tmp_path: Path) -> Iterator[Pyvtep]:
    with ExitStack() as stack:
        made = Pyvtep(tmp_path, stack)
        made.start_speaker()
        yield made


def test_the_summary_shows_all_but_routes_and_macs(pyvtep: Pyvtep) -> None:
    pyvtep.views["summary"] = evpn_fake.summary(
        sessions=[evpn_fake.session(), evpn_fake.down("10.0.0.9")],
        vteps=[evpn_fake.vtep(f"192.0.2.{host}") for host in range(3, 33)],
        moves=[evpn_fake.move()],
        duplicates=[evpn_fake.duplicate()],
        unmatched=[evpn_fake.unmatched("65001:200", "65001:201", vnis=[*range(200, 207)])],
        label_conflicts=[evpn_fake.label_conflict()],
        segments=[evpn_fake.segment(conflicts=2)],
        ignored={"5": 3, "1": 2},
        not_installed={"refused": 4, "next-hop": 1, "own-route": 6},
        replaced_next_hops=[{"neighbor": "10.0.0.1", "vteps": ["192.0.2.3"], "vnis": [100, 101]}],
        problems=["cannot listen on port 179: address in use"],
    )
    shown = pyvtep.run("").output
    assert shown.startswith("speaker running for 2 h, pid 4243, version 0.15.0\n\nsessions:\n")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "10.0.0.1 65000 established 2 h 10.0.0.2 10.0.0.1 90 12 4 md5 eor" in lines
    assert "10.0.0.9 active 12 s 0 0" in lines
    assert "100 10.0.0.2:100 auto 65000:100 192.0.2.1 2 5 3 4" in lines
    assert "and 10 more: pyvtep evpn show vteps" in lines
    assert f"100 {MAC} local 192.0.2.3 1 60 s" in lines
    assert f"100 {MAC} warned 8 6 local 192.0.2.3 30 s" in lines
    assert "10.0.0.9 3 s ago: connection refused by 10.0.0.1 port 179: start bgpd there" in lines
    assert (
        "not imported: routes of 192.0.2.9 (vni 200, 201, 202, 203, 204 and 2 more) with 65001:200 "
        "65001:201, from 10.0.0.1; import them with --route-target-import 65001:200"
    ) in lines
    assert any(line.startswith("ignored: routes of 192.0.2.8 have 65000:100") for line in lines)
    assert "routes that pyvtep does not use: 2 of type 1, 3 of type 5" in lines
    assert (
        "routes that are not installed: 1 next-hop, 4 refused; pyvtep evpn show routes has them"
    ) in lines
    assert any(
        line.startswith("vni 100, 101: the next hop of routes of 192.0.2.3 is the BGP neighbour")
        and line.endswith("attribute-unchanged next-hop")
        for line in lines
    )
    assert any(line.startswith("vni 100: 2 MACs are static here") for line in lines)
    assert lines[-1] == "cannot listen on port 179: address in use"


def test_own_routes_of_a_reflector_are_no_note(pyvtep: Pyvtep) -> None:
    pyvtep.views["summary"] = evpn_fake.summary(not_installed={"own-route": 6})
    assert "not installed" not in pyvtep.run("").output
    assert json.loads(pyvtep.run("show --json").output)["not_installed"] == {"own-route": 6}


def test_the_summary_as_json_has_the_speaker(pyvtep: Pyvtep) -> None:
    shown = json.loads(pyvtep.run("show --json").output)
    assert shown == {"speaker": evpn_fake.speaker(), **evpn_fake.summary()}


@pytest.mark.parametrize("view", [view for view in EVPN_VIEWS if view != "summary"])
def test_every_view_is_a_table_and_json(pyvtep: Pyvtep, view: str) -> None:
    rows = pyvtep.views[view]
    assert isinstance(rows, list)
    assert json.loads(pyvtep.run(f"show {view} -j").output) == rows
    assert len(pyvtep.run(f"show {view}").output.splitlines()) == 1 + len(rows)
    pyvtep.views[view] = []
    assert pyvtep.run(f"show {view}").output == "(none)\n"


def test_cells(pyvtep: Pyvtep) -> None:
    def rows(words: str) -> list[str]:
        return [" ".join(line.split()) for line in pyvtep.run(words).output.splitlines()[1:]]

    assert rows("show macs") == [
        f"100 {MAC} 192.0.2.3 10.0.0.1 10.1.0.3 fe80::3 1 60 s",
        f"100 {MAC} local 10.0.0.1 10.1.0.3 fe80::3 1 held sticky 60 s",
    ]
    assert rows("show vteps") == [
        "100 192.0.2.3 10.0.0.1 3 flood 2 h",
        "100 192.0.2.4 10.0.0.1 3 stale 2 h",
    ]
    pyvtep.views["macs"] = [evpn_fake.mac(reason="refused")]
    pyvtep.views["vteps"] = [evpn_fake.vtep(reason="ip-version")]
    assert rows("show macs")[0].endswith(" unused(refused) 60 s")
    assert rows("show vteps")[0].endswith(" flood unused(ip-version) 2 h")
    assert rows("show routes")[0] == (
        f"2 100 192.0.2.3:2 {MAC} 10.1.0.3 192.0.2.3 100 1 10.0.0.1 65000:100 best 60 s"
    )
    assert " local 65000:100 " in rows("show routes")[1]
    assert rows("show routes")[2].endswith(" unused(route-target) 60 s")


@pytest.mark.parametrize(
    ("words", "params"),
    [
        ("show routes", {"what": "routes"}),
        ("show routes type 3 vni 100", {"what": "routes", "type": 3, "vni": 100}),
        ("show type imet", {"what": "routes", "type": 3}),
        ("show --vni 100 macs", {"what": "macs", "vni": 100}),
        ("show 02-00-00-00-00-0A", {"what": "macs", "mac": "02:00:00:00:00:0a"}),
        ("show routes 0200.0000.000a", {"what": "routes", "mac": "02:00:00:00:00:0a"}),
        ("list moves", {"what": "moves"}),
        ("", {"what": "summary"}),
    ],
)
def test_words_become_parameters(pyvtep: Pyvtep, words: str, params: dict[str, Any]) -> None:
    pyvtep.run(words)
    assert pyvtep.calls == [("evpn.show", params)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "show vtepss",
            "vtepss: is neither a MAC nor a word that is known here; did you mean vt",
        ),
        ("show peers", "peers: is neither a MAC nor a word that is known here; did you mean sessi"),
        ("show xyz", "xyz: is neither a MAC nor a word that is known here; known are: summary"),
        ("show 100", "100: is not expected here; did you mean: vni 100?"),
        ("show vni", "vni: its value is missing"),
        ("show vni 16777216", "vni 16777216: is not a VNI: a number from 0 to 16777215"),
        ("show vni 1e2", "vni 1e2: is not a VNI"),
        ("show routes macs", "macs: is given twice, or contradicts an earlier word"),
        ("show type x", "type x: is not a route type: 2 (MAC, MAC+IP), 3"),
        ("show vteps type 3", "type: selects routes; write: pyvtep evpn show routes type 3"),
        (f"show vteps {MAC}", f"{MAC}: vteps have no MAC; write: pyvtep evpn show macs {MAC}"),
        ("show sessions vni 7", "vni: a session is for all VNIs"),
        ("show vni 7 --vni 8", "--vni 8: contradicts"),
        ("clear", "duplicate: is missing; usage: "),
        ("clear duplicate", "mac: is missing; usage: "),
        (f"clear {MAC}", "duplicate: is missing; usage: "),
        ("clear duplicates", "duplicate: is missing; usage: "),
        ("clear duplicate duplicates", "duplicates: is neither a MAC nor a word that is known"),
    ],
)
def test_mistakes_are_explained(pyvtep: Pyvtep, words: str, said: str) -> None:
    error = pyvtep.run(words).exception
    assert isinstance(error, VtepError)
    assert str(error).startswith(said), error
    assert not pyvtep.calls


def test_a_duplicate_is_released(pyvtep: Pyvtep) -> None:
    assert pyvtep.run(f"clear duplicate {MAC.upper()} vni 100").output == "1 released\n"
    assert pyvtep.calls == [("evpn.clear", {"mac": MAC, "vni": 100})]
    assert json.loads(pyvtep.run(f"clear duplicate {MAC} --json").output) == {"cleared": 1}
    pyvtep.cleared = 0
    shown = pyvtep.run(f"clear duplicate {MAC} vni 100").output
    assert shown.startswith(f"{MAC} is no duplicate in vni 100; see: ")


def test_restart_asks_the_daemon(pyvtep: Pyvtep) -> None:
    assert pyvtep.run("restart").output == "EVPN speaker restarted, process 77\n"
    assert pyvtep.daemon_calls == [("evpn.restart", {})]
    assert json.loads(pyvtep.run("restart --json").output) == {"pid": 77}


def test_without_a_speaker_the_daemon_says_why(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pyvtep = Pyvtep(tmp_path, stack)
        pyvtep.evpn = evpn_fake.status(speaker=evpn_fake.speaker(state="failed", last_error="oops"))
        said = str(pyvtep.run("show").exception)
        assert said.startswith("the EVPN speaker does not answer (failed: oops); the log ")
        pyvtep.evpn = evpn_fake.status(speaker=evpn_fake.speaker(state="starting"))
        assert str(pyvtep.run("show").exception).startswith("the EVPN speaker is starting; ")
        pyvtep.evpn = None
        assert str(pyvtep.run("show macs").exception).startswith("this pyvtep has no EVPN; start ")


def test_words_are_completed() -> None:
    completed = CliRunner().invoke(
        cli,
        prog_name="pyvtep",
        env={
            "_PYVTEP_COMPLETE": "bash_complete",
            "COMP_WORDS": "pyvtep evpn show m",
            "COMP_CWORD": "3",
        },
    )
    assert [line.partition(",")[2] for line in completed.output.split()] == ["macs", "moves"]
