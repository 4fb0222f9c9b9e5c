"""Which parts may know of which: the core is pure, and its layers point downwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vtep"

MAY_IMPORT = {
    "wire": {"wire"},
    "offload": {"offload", "wire", "counters"},
    "fdb": {"wire", "errors"},
    "neigh": {"wire", "fdb", "errors"},
    "docker/network": {"errors", "firewall"},
    "firewall": set[str](),
    "gateway": {"wire"},
    "probe": {"wire"},
    "ingress": set[str](),
    "links": set[str](),
    "tunnel_gso/ack_tracker": {"offload", "wire"},
    "tunnel_gso/encoder": {"offload", "wire"},
    "tunnel_gso/state": {"tunnel_gso", "probe"},
    "switch": {"wire", "fdb", "neigh", "gateway", "counters", "probe"},
    "mtu": {"mtu", "offload", "wire", "counters"},
    "doctor/facts": {"doctor", "firewall", "probe"},
    "doctor/finding": set[str](),
    "doctor/drops": {"doctor", "firewall", "counters"},
    "doctor/findings": {"doctor", "firewall", "probe", "counters", "wire"},
    "counters": set[str](),
    "errors": set[str](),
    "overlap": {"values"},
    "values": {"wire", "errors"},
    "config": {"values", "wire", "errors"},
    "tomllines": set[str](),
    "configfile": {"config", "values", "errors", "tomllines"},
    "control/jsonrpc": set[str](),
    "control/schema": set[str](),
    "control/params": {"wire", "fdb", "errors"},
    "cli/words": {"errors"},
}
"""For each part of the core, the parts of ours that it may import."""

IMPURE = {
    *("asyncio", "logging", "os", "pyroute2", "pytun", "random", "select", "socket", "subprocess"),
    *("sys", "threading", "time", "uvloop"),
}
PURE = [name for name in MAY_IMPORT if name != "values"]
"""Values judges file names, for which it asks `os` how they are spelled, and nothing else."""


def sources(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports(source: str) -> set[str]:
    """Every module named in an import anywhere in the text, `from a import b` as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def parts_of_ours(source: str) -> set[str]:
    known = {path.stem for path in PACKAGE.iterdir()}
    ours = {name.split(".")[1] for name in imports(source) if name.startswith("vtep.")}
    return ours & known


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_layers(part: str) -> None:
    for path in sources(part):
        assert parts_of_ours(path.read_text()) <= MAY_IMPORT[part], path


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_nothing_goes_by_way_of_the_package_itself(part: str) -> None:
    # `from vtep import Config` in the core would bring the engine along.
    known = {f"vtep.{path.stem}" for path in PACKAGE.iterdir()}
    for path in sources(part):
        ours = {name for name in imports(path.read_text()) if name.split(".")[0] == "vtep"}
        assert all(".".join(name.split(".")[:2]) in known | {"vtep"} for name in ours), path


@pytest.mark.parametrize("part", PURE)
def test_core_is_pure(part: str) -> None:
    for path in sources(part):
        modules = {name.split(".")[0] for name in imports(path.read_text())}
        assert not modules & IMPURE, path


def test_tunnel_gso_has_a_core_and_no_cycle() -> None:
    core = {"ack_tracker", "encoder", "state"}
    for name in core:
        source = (PACKAGE / "tunnel_gso" / name).with_suffix(".py").read_text()
        own = [module.split(".") for module in imports(source) if ".tunnel_gso." in module]
        assert {module[2] for module in own} <= core, name
    for path in sources("underlay"):  # Which its path and its device are built on.
        assert "tunnel_gso" not in parts_of_ours(path.read_text()), path


def test_the_client_knows_nothing_of_the_vtep() -> None:
    for name in ("client", "jsonrpc", "paths", "schema"):
        source = (PACKAGE / "control" / name).with_suffix(".py").read_text()
        assert parts_of_ours(source) <= {"control", "descriptors", "errors"}, name


def test_values_ask_nothing_of_the_machine() -> None:
    tree = ast.parse((PACKAGE / "values.py").read_text())
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert asked <= {"fsencode", "fspath", "PathLike"}
    modules = {name.split(".")[0] for name in imports((PACKAGE / "values.py").read_text())}
    assert modules & IMPURE <= {"os"}


@pytest.mark.parametrize("part", PURE)
def test_core_opens_and_prints_nothing(part: str) -> None:
    for path in sources(part):
        called = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & {"open", "print", "input", "exec", "eval", "__import__"}, path


def test_every_part_of_the_core_was_found() -> None:
    for part in MAY_IMPORT:
        assert sources(part), part
        assert all(path.is_file() for path in sources(part)), part
    assert {path.stem for path in sources("wire")} >= {"vxlan", "ethernet", "ip", "flow"}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import socket", {"socket"}),
        ("import os.path as p", {"os.path"}),
        ("from vtep.wire import ip", {"vtep.wire", "vtep.wire.ip"}),
        ("from vtep import engine", {"vtep", "vtep.daemon.vtep"}),
        ("def f() -> None:\n    import time", {"time"}),
    ],
)
def test_how_imports_are_found(source: str, names: set[str]) -> None:
    assert imports(source) == names


def test_how_parts_are_found() -> None:
    assert parts_of_ours("from vtep import engine") == {"engine"}
    assert parts_of_ours("from vtep.wire.ip import TCP, UDP\nimport vtep.tap") == {"wire", "tap"}
