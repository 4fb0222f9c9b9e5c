"""Routes that no VNI imports, and the advice that follows from them."""

from typing import Any

from tests.unit import evpn_fake
from tests.unit.evpn_routes import PEER, flood_update, mac_route, segment, tables, target, update
from vtep.control import problems
from vtep.evpn.tables import Tables

VTEP, OTHER = "192.0.2.7", "192.0.2.8"


def announce(made: Tables, vtep: str, label: int, *targets: str) -> None:
    route = mac_route(vtep, label % 200, label=label)
    made.update(PEER, update(vtep, route, route_targets=frozenset(map(target, targets))), 1.0)


def items(made: Tables) -> list[tuple[str, str | None, list[str], list[int]]]:
    return [
        (each["vtep"], each["import_target"], each["route_targets"], each["vnis"])
        for each in made.unmatched()
    ]


def test_the_advised_target_is_the_one_of_the_vni_and_joins_no_other() -> None:
    made = tables(segment(100))
    announce(made, VTEP, 7, "65001:7")
    announce(made, VTEP, 100, "65001:999")
    assert items(made) == [
        (VTEP, "65001:999", ["65001:999"], [100]),
        (VTEP, "65001:7", ["65001:7"], [7]),
    ]
    empty = evpn_fake.segment(vteps=0, macs=0)
    (found,) = problems.of_evpn(
        evpn_fake.status(segments=[empty], unmatched=made.unmatched())  # As `pyvtep status` does.
    )
    assert found["text"].endswith("import them with --route-target-import 65001:999")
    made.configure({100: segment(import_targets=frozenset({target("65001:999")}))}, 2.0)
    assert items(made) == [(VTEP, "65001:7", ["65001:7"], [7])]


def test_a_target_that_routes_of_another_vni_have_is_not_advised() -> None:
    made = tables(segment(100))
    announce(made, VTEP, 100, "65001:1", "65001:999")
    announce(made, OTHER, 7, "65001:1", "65001:7")
    assert items(made)[0] == (VTEP, "65001:999", ["65001:999", "65001:1"], [100])
    announce(made, OTHER, 8, "65001:999")
    assert items(made) == [
        (VTEP, None, ["65001:1", "65001:999"], [100]),
        (OTHER, None, ["65001:1", "65001:7", "65001:999"], [7, 8]),
    ]


def test_routes_for_vnis_of_this_host_come_first() -> None:
    made = tables(segment(100), segment(200))
    announce(made, VTEP, 7, "65001:7")
    announce(made, OTHER, 200, "65001:998")
    announce(made, OTHER, 100, "65001:999")
    assert [(vtep, vnis) for vtep, _, _, vnis in items(made)] == [
        (OTHER, [100]),
        (OTHER, [200]),
        (VTEP, [7]),
    ]


def test_a_route_of_type_3_without_label_belongs_to_the_vni_of_its_target() -> None:
    made = tables(segment(100))
    targets = frozenset({target("65001:999")})
    made.update(PEER, flood_update(VTEP, route_targets=targets, pmsi=None), 1.0)
    assert items(made) == [(VTEP, "65001:999", ["65001:999"], [])]
    announce(made, VTEP, 100, "65001:999")
    assert items(made) == [(VTEP, "65001:999", ["65001:999"], [100])]


def hint(**changed: Any) -> str:
    return problems.import_hint(evpn_fake.unmatched(**changed))


def test_the_hint_names_no_target_that_joins_segments() -> None:
    assert hint() == "import them with --route-target-import 65001:200"
    assert "pyvtep evpn show routes" in hint(import_target=None, vnis=[7, 8])
    assert "a route target of their own" in hint(import_target=None, vnis=[100])
    assert "at their sender" in hint(import_target=None, route_targets=[])
