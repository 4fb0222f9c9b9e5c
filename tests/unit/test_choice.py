"""The choice of a running pyvtep for a command without --socket."""

from pathlib import Path

import pytest

from vtep.control.access import READING
from vtep.control.choice import Candidate, SegmentName, choose, choose_having
from vtep.control.reconnect import Connector
from vtep.errors import VtepError


def candidate(number: int, *vnis: int, here: bool = True, known: bool = True) -> Candidate:
    segments = tuple(SegmentName(vni, f"vx{vni}", f"tap{vni}") for vni in vnis)
    return Candidate(Path(f"/run/{number}.sock"), number, here, segments if known else None)


ONE, TWO = candidate(1, 100), candidate(2, 200, 201)
AWAY, FAR = candidate(3, 300, here=False), candidate(4, 400, here=False)
SILENT = candidate(5, known=False)


def at(view: Connector) -> Path | None:
    """Return where a view connects to."""
    view()
    return view.path


def test_the_only_pyvtep_of_this_namespace_is_chosen() -> None:
    for changes in (True, False):
        assert choose([AWAY, ONE, FAR], changes=changes) == [ONE]
        assert choose([ONE], vni=7, changes=changes) == [ONE]  # It says itself that it has none.
    assert choose([SILENT, AWAY]) == [SILENT]


def test_of_several_the_one_with_the_segment_is_chosen() -> None:
    assert choose([ONE, TWO], vni=200) == [TWO]
    assert choose([ONE, TWO], dev="vx100") == [ONE]
    assert choose([ONE, TWO], dev="tap201") == [TWO]  # As it was configured; it was renamed.
    assert choose([ONE, TWO, SILENT], vni=100, dev="vx100") == [ONE]
    with pytest.raises(VtepError, match=r"^vni 100 dev vx200: no pyvtep here has it; there is vni"):
        choose([ONE, TWO], vni=100, dev="vx200")
    with pytest.raises(VtepError, match=r"^vni 300: no pyvtep here has it"):
        choose([ONE, TWO, AWAY], vni=300)


def test_a_client_of_a_segment_is_not_connected_to_another() -> None:
    assert choose_having([ONE, TWO], 200, None) == TWO
    assert choose_having([ONE], None, "vx100") == choose_having([ONE], None, None) == ONE
    assert choose_having([SILENT], 7, None) == SILENT  # It does not say what it has.
    for only in (ONE, AWAY):
        with pytest.raises(VtepError, match=r"^vni 7: the only pyvtep does not have it; there is"):
            choose_having([only], 7, None)


def test_an_ambiguous_choice_names_all_candidates() -> None:
    with pytest.raises(VtepError) as refused:
        choose([ONE, TWO, SILENT])
    assert str(refused.value) == (
        "several pyvteps are running; choose one with --socket PATH, --vni N or dev TAP: there is "
        "vni 100 dev vx100 at /run/1.sock (process 1); "
        "vni 200 dev vx200, vni 201 dev vx201 at /run/2.sock (process 2); /run/5.sock (process 5)"
    )
    with pytest.raises(
        VtepError, match="choose one with --socket PATH: there is vni 100 dev vx100"
    ):
        choose([ONE, TWO], by_segment=False)
    same = candidate(6, 100)
    with pytest.raises(VtepError, match=r"^vni 100: several pyvteps have it; choose one with"):
        choose([ONE, same], vni=100)


def test_a_command_that_shows_may_be_for_all_of_this_namespace() -> None:
    assert choose([ONE, AWAY, TWO], changes=False, every=True) == [ONE, TWO]
    assert choose([ONE, AWAY, TWO], vni=200, changes=False, every=True) == [TWO]


def test_nothing_is_changed_in_another_namespace() -> None:
    for others in ([AWAY], [AWAY, FAR]):
        for which in ({}, {"vni": 300}, {"dev": "vx300"}):
            with pytest.raises(VtepError, match="no pyvtep runs in this network namespace; to ch"):
                choose(others, **which)


def test_the_only_pyvtep_of_other_namespaces_can_be_read() -> None:
    assert choose([AWAY], changes=False) == [AWAY]
    assert choose([AWAY, FAR], vni=400, changes=False) == [FAR]
    with pytest.raises(
        VtepError, match="one in another namespace, use --socket PATH: there is vni 3"
    ):
        choose([AWAY, FAR], changes=False, every=True)


def test_a_view_follows_its_pyvtep_and_takes_no_other_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running: list[Candidate] = []
    noted: list[Candidate] = []
    monkeypatch.setattr("vtep.control.reconnect.candidates", lambda **_: running)
    monkeypatch.setattr("vtep.control.reconnect.Client", lambda *_, **__: None)
    view = Connector(None, timeout=1)
    with pytest.raises(VtepError, match="no running pyvtep was found"):
        view()
    running[:] = [AWAY]
    view.check()  # It may start later.
    with pytest.raises(VtepError, match="in another namespace, use --socket PATH: there is vni 3"):
        view()
    running[:] = [AWAY, ONE]
    assert at(view) == ONE.path
    running[:] = [TWO, ONE]  # Another one was started.
    assert at(view) == ONE.path
    with pytest.raises(VtepError, match="several pyvteps are running; choose one with --socket"):
        Connector(None, timeout=1).check()
    running[:] = [TWO]  # It has ended.
    with pytest.raises(VtepError, match=r"1\.sock: no pyvtep answers there any more; to show"):
        view()
    running[:] = [TWO, candidate(7, 100), AWAY]  # It was restarted, and has another socket.
    assert at(view) == Path("/run/7.sock")
    # It has ended, and one of another network namespace has its name.
    running[:] = [AWAY, candidate(7, 100, here=False)]
    with pytest.raises(VtepError, match="no pyvtep runs in this network namespace"):
        view()
    guest = Connector(None, timeout=1, elsewhere=noted.append)
    running[:] = [AWAY]
    assert at(guest) == AWAY.path
    running[:] = [ONE]
    assert at(guest) == AWAY.path
    assert noted == [AWAY]
    assert at(Connector("/run/named.sock", timeout=1)) == Path("/run/named.sock")


def test_a_process_of_an_unknown_namespace() -> None:
    hidden = Candidate(Path("/run/x.sock"), 0, here=False)
    assert str(hidden) == "/run/x.sock (a process of another PID namespace)"


def test_the_methods_that_only_read() -> None:
    assert {"fdb.show", "vni.show", "stats", "monitor.subscribe"} <= READING
    assert not READING & {
        "set",
        "reload",
        "fdb.flush",
        "vni.add",
        "vni.del",
        "neigh.flush",
    }
