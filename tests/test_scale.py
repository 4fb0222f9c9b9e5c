"""`scripts/bench scale` at a small size: each measurement works and is within its bound."""

import pytest

from bench.scale import fdb, flood, vnis
from bench.scale.figures import FDB, FLOOD, VNIS, Figure


def names(figures: tuple[Figure, ...]) -> set[str]:
    return {figure.name for figure in figures}


def test_many_entries_are_shown_flushed_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdb, "_AGEINGS", 1)
    figures = fdb.measure(5000)
    assert names(FDB) <= set(figures)
    assert figures["fdb_show_stall"] > 0


def test_a_broadcast_has_one_copy_for_each_remote_by_one_system_call() -> None:
    figures = flood.measure(40)
    assert names(FLOOD) <= set(figures)
    assert figures["flood_calls"] == 1


def test_many_vnis_come_change_and_go() -> None:
    figures = vnis.measure(50, settle=0, idle=0.1)
    assert names(VNIS) <= set(figures)
    assert figures["vnis_memory"] < 80


def test_a_figure_is_judged_by_its_bound() -> None:
    figure = Figure("name", "label", bound=2)
    assert figure.verdict(2.0) == "met"
    assert figure.verdict(3.0) == "missed by 50%"
    assert Figure("name", "label").verdict(3.0) == ""
