"""What the README says of options and files is what there is."""

import re
from pathlib import Path

import attrs

from vtep import Config
from vtep.cli.main import cli
from vtep.config import Settings
from vtep.counters import Counters

TABLE = re.compile(r"## Compared with the kernel driver\n(.*?)\n## ", re.DOTALL)

KERNEL = """
id remote group local dev dstport srcport ttl tos df flowlabel learning ageing maxaddress proxy rsc
l2miss l3miss udpcsum udp6zerocsumtx udp6zerocsumrx remcsumtx remcsumrx localbypass reserved_bits
gbp gpe external vnifilter mcroute
add append replace del get show flush monitor dst port vni src_vni via nhid static dynamic
permanent extern_learn router sticky mdb
"""
"""What iproute2 calls it, in `ip link add type vxlan help` and in `bridge fdb help`."""

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_option_table_lists_every_option() -> None:
    listed = re.findall(r"^\| `--([a-z0-9-]+)", README, re.MULTILINE)
    fields = (*attrs.fields(Config), *attrs.fields(Settings))
    options = [field.name.replace("_", "-") for field in fields if field.metadata]
    assert listed == [*options, "config", "debug"]


def test_every_counter_that_is_no_drop_is_explained() -> None:
    (table,) = re.findall(r"^\| counter that is no drop .*\n((?:\|.*\n)+)", README, re.MULTILINE)
    explained = [
        name for row in table.splitlines() for name in re.findall("`([a-z_]+)`", row.split("|")[1])
    ]
    counted = [name for name in Counters().as_dict() if not name.startswith("drop_")]
    assert sorted(explained) == sorted([*counted, "taps_lost"])


def test_every_package_and_script_exists() -> None:
    named = set(re.findall(r"`((?:vtep|scripts)/[\w/.]*)`?", README))
    assert {"vtep/datapath/egress.py", "scripts/lint"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def compared() -> list[list[str]]:
    """The rows of the comparison with the kernel driver: its words, ours, and tests."""
    found = TABLE.search(README)
    assert found
    rows = [line.strip("|").split("|") for line in found[1].splitlines() if line.startswith("|")]
    return [row for row in rows if row[1].strip(" -") and row[1].strip() != "here"]


def test_everything_of_the_kernel_driver_is_compared_once() -> None:
    said = [
        word
        for row in compared()
        for code in re.findall(r"`(.*?)`", row[0])
        for word in code.split()
    ]
    # `fdb` is written before some verbs and not before others.
    assert sorted(word for word in said if word != "fdb") == sorted([*KERNEL.split(), "remote"])


def test_what_is_compared_is_there_and_shown_by_a_test() -> None:
    options = {f"--{field.name.replace('_', '-')}" for field in attrs.fields(Config)} | {"--config"}
    for _, ours, shown in compared():
        assert set(re.findall(r"--[a-z0-9-]+", ours)) <= options
        for name in re.findall(r"`pyvtep (\w+)`", ours):
            assert name in cli.commands
        tests = re.findall(r"`(.*?)`", shown)
        assert bool(tests) is not ours.strip().startswith("left out"), ours
        for file, name in (test.split("::") for test in tests):
            paths = ROOT.glob(f"tests/*/{file}")
            assert any(f"\ndef {name}(" in path.read_text() for path in paths), name
