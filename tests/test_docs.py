"""The documentation: its tables, examples, links and names are those of the code."""

import ast
import asyncio
import doctest
import json
import pkgutil
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import click
import pytest
from attrs import evolve
from click.testing import CliRunner

from tests.unit.test_control_methods import Still, ask
from tests.unit.test_doctor_findings import HERE, SEGMENT, SILENT
from vtep import Config, Port
from vtep.cli import bootstrap
from vtep.cli.main import cli
from vtep.cli.monitor import format_event
from vtep.cli.options import check_options
from vtep.cli.summary import describe_port, format_report
from vtep.config import Settings
from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor
from vtep.config.loader import read as read_settings
from vtep.config.option_parsers import OFFLOADS
from vtep.control import socket_files
from vtep.control.events import Events
from vtep.control.serve import serve
from vtep.counters import Counters, Drop
from vtep.daemon.state_file import StateFile
from vtep.doctor.facts import Echoes, Encryption, Facts, IcmpError, Refusal
from vtep.errors import ConfigError, VtepError
from vtep.fastpath.state import LOADING

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

KERNEL = """
id remote group local dev dstport srcport ttl tos df flowlabel learning ageing maxaddress proxy rsc
l2miss l3miss udpcsum udp6zerocsumtx udp6zerocsumrx remcsumtx remcsumrx localbypass reserved_bits
gbp gpe external vnifilter mcroute
add append replace del get show flush monitor dst port vni src_vni via nhid static dynamic
permanent extern_learn router sticky mdb
"""
"""The words of iproute2, in `ip link add type vxlan help` and in `bridge fdb help`."""

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MAC = "02:00:00:00:00:01"


def read(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced code blocks of a page that are in a language."""
    return [code for kind, code in FENCE.findall(read(name)) if kind == language]


def tables(text: str) -> Iterator[list[list[str]]]:
    """Yield each table of a page: its rows, the heading first, as lists of cells."""
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
            for row in block.splitlines()
        ]
        yield [row for row in rows if not set("".join(row)) <= set("-: ")]


def table(name: str, heading: str) -> list[list[str]]:
    """Return the rows, without the heading, of the table whose first column has a heading."""
    (rows,) = (rows for rows in tables(read(name)) if rows[0][0] == heading)
    return rows[1:]


# --- links and names ----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_an_index() -> None:
    for index in (DOCS / "README.md", DOCS / "decisions/README.md"):
        linked = {link.partition("#")[0] for link in LINK.findall(index.read_text())}
        pages = {page.name for page in index.parent.glob("*.md")} - {index.name}
        assert pages <= linked


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_file_module_and_test_that_is_named_exists(page: Path) -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())))
    for name in re.findall(r"(?<![\w./-])(?:vtep|tests|bench|scripts|docs)/[\w/.*-]*", code):
        assert [*ROOT.glob(name.rstrip("/.") or ".")], name
    for name in re.findall(r"(?<![\w./-])vtep(?:\.\w+)+(?!\.\w*\*)", code):
        pkgutil.resolve_name(name)
    for file, test in re.findall(r"([\w/]+\.py)::(\w+)", code):
        assert test in named_tests(file), f"{file}::{test}"


def named_tests(file: str) -> set[str]:
    """Return the test functions of the files of this name, which may be given with its folder."""
    found = set()
    for path in ROOT.glob(file if "/" in file else f"tests/*/{file}"):
        tree = ast.parse(path.read_text())
        found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return found


# --- tables -------------------------------------------------------------------------------------


def test_the_option_table_has_every_option_and_its_default() -> None:
    rows = table("options.md", "option")
    listed = [re.match(r"`--([a-z0-9-]+)", option) for option, _, _ in rows]
    fields = [field for field in (*attrs.fields(Config), *attrs.fields(Settings)) if field.metadata]
    names = [field.name.replace("_", "-") for field in fields]
    assert [match and match[1] for match in listed] == [*names, "config", "debug"]
    for field, (_, _, default) in zip(fields, rows, strict=False):
        match field.default:
            case bool():
                assert default == ("on" if field.default else "off"), field.name
            case int() | str() if not field.metadata.get("repeatable"):
                shown = {"reserved_bits": "ignore"}.get(field.name, str(field.default))
                assert default.strip("`") == shown, field.name
            case (int() as low, int() as high):
                assert default == f"{low} {high}"


def test_the_keys_of_evpn_are_listed_and_their_example_is_accepted(tmp_path: Path) -> None:
    keys = [key.strip("`") for key, _, _ in table("evpn.md", "key")]
    assert keys == [field.name.replace("_", "-") for field in attrs.fields(EvpnSettings)]
    page = (DOCS / "evpn.md").read_text()
    for field in attrs.fields(Neighbor):
        assert f"`{field.name}`" in page, field.name
    example = blocks("evpn.md", "toml")[0]
    (tmp_path / "password").write_text("secret\n")
    file = tmp_path / "pyvtep.toml"
    file.write_text(example.replace("/etc/pyvtep.bgp", str(tmp_path / "password")))
    settings = read_settings(file)
    assert settings.evpn is not None
    assert [config.evpn for config in settings.segments] == [True, True]


def test_the_counter_table_has_every_counter_with_its_unit_and_meaning() -> None:
    counters = [field for field in attrs.fields(Counters) if "unit" in field.metadata]
    expected = [
        [f"`{field.name}`", field.metadata["unit"], field.metadata["help"]] for field in counters
    ]
    assert table("counters.md", "counter") == expected, "paste: " + "\n".join(
        f"| {' | '.join(row)} |" for row in expected
    )
    counted = {name for name in Counters().as_dict() if not name.startswith("drop_")}
    assert {field.name for field in counters} == counted


def test_the_drop_table_has_every_reason_with_its_meaning() -> None:
    expected = [[f"`{reason}`", reason.meaning] for reason in Drop]
    assert table("counters.md", "drop reason") == expected, "paste: " + "\n".join(
        f"| `{reason}` | {reason.meaning} |" for reason in Drop
    )


def test_the_symptoms_are_counters() -> None:
    known = {*Counters().as_dict(), *Drop}
    symptoms = " ".join(row[0] for row in table("doctor.md", "symptom"))
    assert set(re.findall("`([a-z_]+)`", symptoms)) <= known


def test_the_offload_table_has_every_offload() -> None:
    assert {row[0].strip("`") for row in table("offloads.md", "offload")} == set(OFFLOADS)


def test_the_command_table_has_every_command_and_verb() -> None:
    shown: dict[str, set[str]] = {}
    for words, _ in table("control.md", "command"):
        group = ""
        for code in re.findall("`(.*?)`", words):
            first, *verbs = code.removeprefix("pyvtep ").split()
            if code.startswith("pyvtep "):
                group = first
            else:
                verbs = [first]
            shown.setdefault(group, set()).update(verb for verb in verbs if verb.isalpha())
    assert set(shown) == set(cli.commands)
    for name, command in cli.commands.items():
        below = command.commands if isinstance(command, click.Group) else {}
        verbs = {verb for verb, each in below.items() if not each.hidden}
        assert shown[name] - {"COMMAND"} == verbs, name


def test_the_state_table_has_the_columns(tmp_path: Path) -> None:
    with StateFile.locked(tmp_path / "state") as file:
        file.load(0, 0)
        file.begin()
        file.commit(0, 0)
    with closing(sqlite3.connect(tmp_path / "state")) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(fdb)")]
        queries = [shlex.split(command)[-1] for command, _ in transcripts("state.md")]
        assert len([db.execute(query) for query in queries]) == 2
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
    assert [name.strip("`") for name, _ in table("state.md", "column")] == columns
    assert f"`application_id` {application_id:#x}" in read("state.md")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    codes = [int(code) for code, _ in table("getting-started.md", "code")]
    assert codes == [0, VtepError("").exit_code, ConfigError("").exit_code, 130]


def test_the_package_table_has_the_tree() -> None:
    rows = table("architecture.md", "package")
    tree = {f"vtep/{each.parent.name}/" for each in ROOT.glob("vtep/*/__init__.py")}
    tree |= {f"vtep/{each.name}" for each in ROOT.glob("vtep/*.py") if each.name[0] != "_"}
    assert sorted(name.strip("`") for name, _ in rows) == sorted(tree)
    assert all(purpose for _, purpose in rows)


def test_the_package_table_is_in_the_order_of_the_layers() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (layers,) = (
        contract["layers"]
        for contract in tool["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    depth = {name: at for at, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    rows = table("architecture.md", "package")
    depths = [depth[name.strip("`").split("/")[1].removesuffix(".py")] for name, _ in rows]
    assert depths == sorted(depths)


def test_every_invariant_names_a_test() -> None:
    rows = table("architecture.md", "invariant")
    assert len(rows) >= 15
    for invariant, tests in rows:  # That the tests exist is checked for all pages.
        assert re.search(r"`tests/[\w/]+\.py(::\w+)?`|lint-imports", tests), invariant


# --- the comparison with the kernel driver ------------------------------------------------------


def compared() -> list[list[str]]:
    """Return the rows of the comparison: words of iproute2, ours, and tests."""
    name = "kernel-comparison.md"
    return [*table(name, "`ip link add type vxlan`"), *table(name, "`bridge`")]


def test_every_word_of_the_kernel_driver_is_compared_once() -> None:
    words = [
        word
        for row in compared()
        for code in re.findall(r"`(.*?)`", row[0])
        for word in code.split()
    ]
    # `fdb` precedes some verbs and not others. A new `remote` of a device is a row of its own.
    assert sorted(word for word in words if word != "fdb") == sorted([*KERNEL.split(), "remote"])


def test_each_row_of_the_comparison_exists_and_names_a_test_or_says_why_not() -> None:
    options = {f"--{field.name.replace('_', '-')}" for field in attrs.fields(Config)} | {"--config"}
    for _, ours, shown in compared():
        assert set(re.findall(r"--[a-z0-9-]+", ours)) <= options
        for name in re.findall(r"`pyvtep (\w+)`", ours):
            assert name in cli.commands
        tests = re.findall(r"`(.*?)`", shown)
        assert bool(tests) is not ours.startswith("left out"), ours
        for file, name in (test.split("::") for test in tests):
            assert name in named_tests(file), name


# --- examples: command lines --------------------------------------------------------------------


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line of `pyvtep` in the console examples of a page."""
    for kind, code in FENCE.findall(text):
        if kind != "console":
            continue
        for typed in code.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:[\w-]*[#$] )(pyvtep\b[^&|>]*)", typed)
            if match:
                # The output of a command in a command line is a process ID.
                spoken = re.sub(r"\$\([^)]*\)", "4711", match[1])
                yield shlex.split(spoken, comments=True)[1:]


EXAMPLES = [
    pytest.param(words, id=" ".join(["pyvtep", *words]))
    for page in PAGES
    for words in command_lines(page.read_text())
]


def leaves(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from leaves(command)
        else:
            yield command


@pytest.mark.parametrize("words", EXAMPLES)
def test_every_command_line_is_accepted(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only parse it: the callbacks of commands are replaced."""
    given: list[dict[str, Any]] = []
    for command in leaves(cli):
        monkeypatch.setattr(command, "callback", lambda **options: given.append(options))
    monkeypatch.setattr("vtep.cli.run.run", lambda *_, **options: given.append(options))
    monkeypatch.setattr("vtep.service.background.Background.enter", nullcontext)
    monkeypatch.setattr(bootstrap, "unblock_signals", lambda: None)
    file = tmp_path / "pyvtep.toml"
    file.write_text(blocks("many-vnis.md", "toml")[0])
    words = [str(file) if word in ("/etc/pyvtep.toml", "/etc/pyvtep") else word for word in words]
    result = CliRunner().invoke(cli, words, prog_name="pyvtep")
    assert (result.exit_code, len(given)) == (0, 1), result.output
    check_options({name: value for name, value in given[0].items() if value not in (None, ())})


def test_the_examples_were_found() -> None:
    assert len(EXAMPLES) >= 20


# --- examples: output ---------------------------------------------------------------------------


def transcripts(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a page's console examples with the lines that it prints."""
    for code in blocks(name, "console"):
        parts = re.split(r"^(?:[\w-]*[#$] )", code.replace("\\\n", " "), flags=re.MULTILINE)
        for part in parts[1:]:
            command, *output = part.rstrip("\n").split("\n")
            yield command, output


def test_the_configuration_file_and_its_mistakes(tmp_path: Path) -> None:
    (text,) = blocks("many-vnis.md", "toml")
    wrong = text.replace('"172.31.0.108"', '"172.31.0.300"').replace("bridge =", "brigde =", 1)
    outputs = [out for command, out in transcripts("many-vnis.md") if "check-config" in command]
    assert len(outputs) == 2
    file = tmp_path / "pyvtep.toml"
    for content, expected in zip((text, wrong), outputs, strict=True):
        file.write_text(content)
        result = CliRunner().invoke(cli, ["check-config", str(file)])
        assert result.output.replace(str(file), "/etc/pyvtep.toml").splitlines() == expected


@pytest.mark.parametrize("name", ["getting-started.md"])
def test_the_line_that_introduces_a_segment(name: str) -> None:
    seen = 0
    for command, output in transcripts(name):
        for shown in output:
            if shown.startswith("pyvtep: vni"):
                words = shlex.split(command)
                options = {words[at][2:]: words[at + 1] for at in range(len(words) - 1)}
                config = Config(vni=options["vni"], remote=options["remote"])
                port = SimpleNamespace(
                    config=config,
                    tap=options.get("tap", config.tap),
                    mtu=1450,
                    underlay_devices=["eth0"],
                    underlay_missing=(),
                    offload=OFFLOADS,
                    fast_path=LOADING,
                )
                assert shown == f"pyvtep: {describe_port(cast('Port', port))}"
                seen += 1
    assert seen >= 1


def test_the_doctor_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, expected),) = transcripts("doctor.md")
    host = expected[1].split()[0]
    refused = Echoes(20, errors=(IcmpError(Refusal.PORT, host),))
    silent = evolve(SILENT, host=host, vni=1, there=refused, encryption=Encryption.NONE)
    facts = Facts(
        HERE,
        segments=(evolve(SEGMENT, vni=1),),
        remotes=(silent,),
    )
    monkeypatch.setattr("vtep.doctor.examine.examine", lambda *_: facts)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.output.splitlines() == expected
    assert result.exit_code == 1


def test_the_report_of_a_signal_has_the_lines_that_the_page_shows() -> None:
    """Compare all but the numbers, which are those of a moment."""
    (shown,) = blocks("monitoring.md", "console")
    vtep = Still(Config(vni=1, remote="172.31.0.107", tap="vx0"))
    (mac,) = re.findall(r"^ +((?:\w\w:){5}\w\w) ", shown, re.MULTILINE)
    ask(vtep, "fdb.add", mac=mac, dst="172.31.0.107", state="dynamic")
    reported = {re.sub(r" *\b\d+\b", " N", row) for row in format_report(vtep).splitlines()}
    rows = [row for row in shown.splitlines() if row.strip() != "..."]
    assert len(rows) >= 9
    for row in rows:
        assert re.sub(r" *\b\d+\b", " N", row) in reported


# --- examples: a running VTEP -------------------------------------------------------------------


class Running:
    """A VTEP that was never started, behind a control socket in the default folder."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "vx0.sock"
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._ready.wait(30)

    async def _run(self) -> None:
        vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0"))
        unwatch = Events(vtep).watch(lambda event: self.lines.append(format_event(event)))

        async def flush() -> None:
            return

        async def reload() -> str:
            return "nothing changed"

        async with serve(vtep, str(self.socket), reload, flush):
            self._ready.set()
            await self._ended.wait()
        unwatch()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(socket_files, "folder", lambda: tmp_path)
    monkeypatch.setattr(bootstrap, "unblock_signals", lambda: None)
    vtep = Running(tmp_path)
    try:
        yield vtep
    finally:
        vtep.close()


def pyvtep(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False, prog_name="pyvtep")
    assert result.exit_code == 0, result.output
    return result.output


def test_the_control_commands_do_what_the_page_shows(running: Running) -> None:
    pyvtep("fdb", "add", "6a:d0:e4:49:07:8e", "dst", "192.0.2.2", "dynamic")
    for command, output in transcripts("control.md"):
        words = shlex.split(command, comments=True)
        if words[0] != "pyvtep":
            continue
        if words[1] == "monitor":
            pyvtep("fdb", "del", "6a:d0:e4:49:07:8e", "dev", "vx0")
            assert set(output) <= set(running.lines)
            continue
        printed = [row.split() for row in pyvtep(*words[1:]).splitlines()]
        # AGE, TX and RX are those of a moment.
        assert [row[:4] for row in printed] == [row.split()[:4] for row in output]


def test_the_json_rpc_example_is_answered(running: Running) -> None:
    (request,) = re.findall(r"echo '(\{.*?\})' \|", read("control.md"))
    pyvtep("fdb", "add", MAC, "dst", "192.0.2.3")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(running.socket))
        client.sendall(request.encode() + b"\n")
        answer = json.loads(client.makefile().readline())
    assert answer["id"] == json.loads(request)["id"]
    assert answer["result"]["mac"] == MAC


@pytest.mark.usefixtures("running")
def test_the_client_example_prints_what_the_page_shows() -> None:
    (example,) = blocks("control.md", "pycon")
    pyvtep("fdb", "add", MAC, "dst", "192.0.2.3", "static")
    test = doctest.DocTestParser().get_doctest(example, {}, "control.md", "control.md", 0)
    assert doctest.DocTestRunner().run(test) == (0, 2)


def test_the_example_in_memory_delivers_its_frame() -> None:
    *_, example = blocks("library.md", "python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{b'hello'!r}\n"
