"""EVPN in `pyvtep status`: its problems, and its lines."""

from tests.unit import evpn_fake, status_fake
from tests.unit.evpn_fake import MAC
from vtep.cli.evpn_text import describe_speaker
from vtep.cli.monitor import format_event
from vtep.cli.status_text import WIDTH, format_status
from vtep.control import problems
from vtep.control import status as making
from vtep.control.events import Events
from vtep.control.evpn_schema import EvpnStatus
from vtep.control.problems import of_evpn
from vtep.control.schema import Problem
from vtep.daemon.vtep import Vtep
from vtep.evpn.reports import aged, silent_since


def kinds(evpn: EvpnStatus) -> list[tuple[str, int | None, str | None]]:
    return [(each["problem"], each["vni"], each["remote"]) for each in of_evpn(evpn)]


def text_of(evpn: EvpnStatus) -> str:
    (problem,) = of_evpn(evpn)
    return problem["text"]


def test_a_healthy_speaker_is_no_problem() -> None:
    assert not kinds(evpn_fake.status())


def test_a_session_is_a_problem_with_its_reason_unless_it_is_about_to_come_up() -> None:
    evpn = evpn_fake.status(sessions=[evpn_fake.session(), evpn_fake.down("10.0.0.9")])
    assert kinds(evpn) == [("evpn-session-down", None, "10.0.0.9")]
    assert "not established: connection refused by 10.0.0.1 port 179" in text_of(evpn)
    for age, expected in ((2.0, 0), (30.0, 1)):
        young = evpn_fake.down(state="connect", age=age, last_error=None)
        assert len(kinds(evpn_fake.status(sessions=[young]))) == expected


def test_a_session_that_was_up_before_its_settings_changed_is_one_at_once() -> None:
    reset = evpn_fake.down(state="connect", age=1.0, last_error=None, was_established=True)
    evpn = evpn_fake.status(sessions=[reset])
    assert kinds(evpn) == [("evpn-session-down", None, "10.0.0.1")]
    assert "has no connection with its new settings, state connect" in text_of(evpn)


def test_a_silent_speaker_is_the_only_problem() -> None:
    silent = evpn_fake.speaker(state="silent", age=23.0, report_age=23.0)
    evpn = evpn_fake.status(speaker=silent, sessions=[evpn_fake.down()])
    assert kinds(evpn) == [("evpn-speaker-failed", None, None)]
    assert "process 4243, has not reported for 23 s" in text_of(evpn)
    lines = " ".join(
        " ".join(format_status(status_fake.status(evpn=evpn), lambda text, _: text)).split()
    )
    assert "speaker silent for 23 s, so the sessions below are as they were then, pid" in lines


def test_a_speaker_is_silent_if_it_does_not_report_in_time() -> None:
    assert silent_since(100.0, None, 115.0) is None
    assert silent_since(100.0, None, 116.0) == 100.0
    assert silent_since(100.0, 200.0, 214.0) is None
    assert silent_since(100.0, 200.0, 216.0) == 200.0
    # It has attached again, to another process.
    assert silent_since(300.0, 200.0, 310.0) is None


def test_ages_go_on_between_reports() -> None:
    report = evpn_fake.report(
        sessions=[evpn_fake.session(), evpn_fake.down()], duplicates=[evpn_fake.duplicate()]
    )
    shown = aged(report, evpn_fake.speaker(report_age=20.0))
    assert [each["age"] for each in shown["sessions"]] == [7320.0, 32.0]
    assert [each["last_error_age"] for each in shown["sessions"]] == [None, 23.0]
    assert [each["age"] for each in shown["duplicates"]] == [50.0]
    assert report["sessions"][0]["age"] == 7300.0
    assert aged(report, evpn_fake.speaker(report_age=None))["sessions"] == report["sessions"]


def test_a_failed_speaker_is_the_only_problem() -> None:
    dead = evpn_fake.speaker(state="failed", pid=None, last_error="killed by SIGKILL")
    evpn = evpn_fake.status(speaker=dead, sessions=[evpn_fake.down()])
    assert kinds(evpn) == [("evpn-speaker-failed", None, None)]
    assert "killed by SIGKILL" in text_of(evpn)
    assert "it has ended" in text_of(evpn_fake.status(speaker={**dead, "last_error": None}))


def test_a_vni_that_imports_nothing_is_one_if_others_announce_what_none_imports() -> None:
    empty = evpn_fake.segment(vteps=0, macs=0)
    assert not kinds(evpn_fake.status(segments=[empty]))
    assert not kinds(evpn_fake.status(unmatched=[evpn_fake.unmatched(vnis=[100])]))
    assert not kinds(evpn_fake.status(segments=[empty], unmatched=[evpn_fake.unmatched()]))
    other = evpn_fake.unmatched("65001:200", vnis=[100])
    evpn = evpn_fake.status(segments=[empty], unmatched=[other])
    assert kinds(evpn) == [("evpn-no-routes", 100, "192.0.2.9")]
    assert "192.0.2.9 announces the VNI with 65001:200, which no VNI imports" in text_of(evpn)
    assert "--route-target-import 65001:200" in text_of(evpn)
    bare = evpn_fake.unmatched(route_targets=[], vnis=[100])
    evpn = evpn_fake.status(segments=[empty], unmatched=[bare])
    assert "announces the VNI with no route target" in text_of(evpn)
    assert "give them a route target at their sender" in text_of(evpn)


def test_a_spine_that_replaces_the_next_hop_is_one() -> None:
    replaced = {"neighbor": "10.0.0.1", "vteps": ["192.0.2.3", "192.0.2.4"], "vnis": [100]}
    evpn = evpn_fake.status(replaced_next_hops=[replaced])
    assert kinds(evpn) == [("evpn-next-hop", 100, "10.0.0.1")]
    assert "192.0.2.3, 192.0.2.4 is the BGP neighbour 10.0.0.1 itself" in text_of(evpn)


def test_no_vtep_is_to_be_started_at_a_replaced_next_hop() -> None:
    def refused(vni: int, remote: str) -> Problem:
        return {"problem": "remote-refused", "vni": vni, "remote": remote, "text": "refuses"}

    replaced = {"neighbor": "10.0.0.1", "vteps": ["192.0.2.3"], "vnis": [100]}
    evpn = evpn_fake.status(replaced_next_hops=[replaced])
    found = [refused(100, "10.0.0.1"), refused(101, "10.0.0.1"), refused(100, "10.0.0.2")]
    assert list(problems.unexplained(found, evpn)) == found[1:]
    assert list(problems.unexplained(found, None)) == found


def test_one_restart_is_once() -> None:
    text = describe_speaker(evpn_fake.speaker(restarts=1, last_error="killed by SIGKILL"))
    assert text.endswith(", restarted once, last error: killed by SIGKILL")


def test_an_own_mac_that_another_host_announces_too_is_one() -> None:
    duplicate = evpn_fake.duplicate(state="conflict", vteps=["local", "10.0.0.9"])
    evpn = evpn_fake.status(duplicates=[duplicate])
    assert kinds(evpn) == [("evpn-duplicate-mac", 100, None)]
    assert f"{MAC} is a MAC of this host itself, and 10.0.0.9 announces it, too" in text_of(evpn)
    assert "evpn clear" not in text_of(evpn)


def test_a_duplicate_mac_is_one_with_the_command_that_releases_it() -> None:
    for state, said in (
        ("warned", "192.0.2.3 (6 moves within duplicate-time): find"),
        ("held", "and is held where it is: find"),
    ):
        evpn = evpn_fake.status(duplicates=[evpn_fake.duplicate(state=state)])
        assert kinds(evpn) == [("evpn-duplicate-mac", 100, None)]
        assert said in text_of(evpn)
        assert text_of(evpn).endswith(f"pyvtep evpn clear duplicate {MAC}")


def test_the_daemon_shows_what_its_supervisor_says() -> None:
    vtep = Vtep()
    assert making.status(vtep, ()).whole()["evpn"] is None
    evpn = evpn_fake.status(sessions=[evpn_fake.down()])
    vtep.evpn_status = lambda: evpn
    shown = making.status(vtep, ()).whole()
    assert shown["evpn"] == evpn
    assert [each["problem"] for each in shown["problems"]] == ["evpn-session-down"]


def test_the_lines_of_a_status() -> None:
    evpn = evpn_fake.status(
        sessions=[
            evpn_fake.session(),
            evpn_fake.session("10.0.0.3", end_of_rib=False),
            evpn_fake.down("fe80::9%eth0"),
            *(evpn_fake.session(f"10.9.0.{host}") for host in range(120)),
        ],
        speaker=evpn_fake.speaker(restarts=2, last_error="killed by SIGKILL"),
    )
    lines = list(format_status(status_fake.status(evpn=evpn), lambda text, _: text))
    assert max(map(len, lines)) <= WIDTH
    text = " ".join(" ".join(lines).split())
    assert "evpn speaker running for 2 h, pid 4243, version 0.15.0, restarted 2 times" in text
    assert "neighbor 10.0.0.1 established, AS 65000 for 2 h; routes rx 12, tx 4" in text
    assert "routes rx 12 (not all yet), tx 4" in text
    assert "neighbor fe80::9%eth0 active, for 12 s" in text
    assert "vni 100: vteps 2, macs 5, neighbours 3, announced 4" in text
    assert "and 23 more sessions: --json shows them" in text


def test_sessions_that_come_and_go_are_events() -> None:
    vtep = Vtep()
    seen: list[str] = []
    end = Events(vtep).watch(lambda event: seen.append(format_event(event)))
    for watcher in vtep.evpn_watchers:
        watcher("established", "10.0.0.1")
        watcher("down", "fe80::9%eth0")
    end()
    assert not vtep.evpn_watchers
    assert seen == [
        "Established evpn-session 10.0.0.1",
        "Down evpn-session fe80::9%eth0",
    ]
