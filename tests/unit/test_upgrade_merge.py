"""The merge of runtime changes and file changes, compared with a table of all cases."""

from collections.abc import Iterable
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vtep.config import Config
from vtep.upgrade.merge import merge

OPTIONS = ("ageing", "ttl", "proxy")
_VALUES = st.fixed_dictionaries(
    {"ageing": st.integers(100, 102), "ttl": st.integers(1, 3), "proxy": st.booleans()}
)
Values = dict[str, Any]
Side = dict[int, Values]
SIDES = st.dictionaries(st.integers(1, 3), _VALUES)


def configs(side: Side) -> list[Config]:
    plain = Config(vni=1, tap="vx", remote=("192.0.2.2",))
    return [evolve(plain, vni=vni, tap=f"vx{vni}", **options) for vni, options in side.items()]


def expected(base: Values | None, current: Values | None, wanted: Values | None) -> Values | None:
    """Decide about one VNI case by case. Returns: its options, None if it is to be absent."""
    match base is None, current is None, wanted is None:
        case True, True, True:
            return None
        case True, True, False:  # New in the file.
            return wanted
        case True, False, True:  # Added at run time.
            return current
        case True, False, False:  # Added at run time, and then in the file.
            return wanted
        case False, True, True:  # Deleted in both places.
            return None
        case False, True, False:  # Deleted at run time: back if the file has changed about it.
            return None if wanted == base else wanted
        case False, False, True:  # Deleted from the file.
            return None
    assert base is not None
    assert current is not None
    assert wanted is not None
    return {name: current[name] if wanted[name] == base[name] else wanted[name] for name in OPTIONS}


def by_vni(merged: Iterable[Config]) -> Side:
    return {each.vni: {name: getattr(each, name) for name in OPTIONS} for each in merged}


@given(SIDES, SIDES, SIDES)
def test_a_merge_decides_about_each_vni_and_option_alone(
    base: Side, current: Side, wanted: Side
) -> None:
    merged = merge(configs(base), configs(current), configs(wanted))
    assert len({each.vni for each in merged}) == len(merged)
    decided = {
        vni: expected(base.get(vni), current.get(vni), wanted.get(vni))
        for vni in base.keys() | current.keys() | wanted.keys()
    }
    assert by_vni(merged) == {vni: each for vni, each in decided.items() if each is not None}


@given(SIDES, SIDES)
def test_an_unchanged_file_changes_nothing(file: Side, current: Side) -> None:
    assert by_vni(merge(configs(file), configs(current), configs(file))) == current


@given(SIDES, SIDES)
def test_without_runtime_changes_the_file_is_applied(base: Side, wanted: Side) -> None:
    assert by_vni(merge(configs(base), configs(base), configs(wanted))) == wanted
