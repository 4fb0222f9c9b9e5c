"""Words of the client commands, and the output of their results."""

import json
import os
import subprocess
import sys
from typing import Any, cast

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.cli import client_command
from vtep.cli.fdb import print_entries
from vtep.cli.grammar import DESTINATION, FILTER, KIND, SEGMENT, Grammar
from vtep.cli.main import cli
from vtep.cli.monitor import format_event
from vtep.cli.segments import describe_origin
from vtep.control.schema import Destination, FdbEntry, MonitorEvent, RemoteEntry
from vtep.errors import ConfigError

MAC = "02:00:00:00:00:01"
ENTRY = Grammar("mac", {**DESTINATION, **SEGMENT}, KIND)
WANTED = Grammar(None, {**DESTINATION, **SEGMENT}, FILTER)


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (
            f"{MAC} dst 192.0.2.2 port 4789 vni 5 static",
            {"mac": MAC, "dst": "192.0.2.2", "port": "4789", "dst_vni": "5", "state": "static"},
        ),
        (
            f"{MAC} dev vx0 dst fe80::1 via eth0 self permanent extern_learn sticky",
            {
                "mac": MAC,
                "dev": "vx0",
                "dst": "fe80::1",
                "via": "eth0",
                "state": "permanent",
                "extern_learn": True,
                "sticky": True,
            },
        ),
        (f"dev vx0 {MAC} local", {"dev": "vx0", "mac": MAC, "state": "permanent"}),
        (f"src_vni 7 vni 8 {MAC}", {"vni": "7", "dst_vni": "8", "mac": MAC}),
        ("", {}),
    ],
)
def test_words_of_an_entry(words: str, params: dict[str, Any]) -> None:
    assert ENTRY.parse(words.split()) == params


def test_words_of_a_filter() -> None:
    assert WANTED.parse(["dst", "192.0.2.2", "nostatic", "dynamic", "noextern_learn", "self"]) == {
        "dst": "192.0.2.2",
        "static": False,
        "dynamic": True,
        "extern_learn": False,
    }


@pytest.mark.parametrize(
    ("grammar", "words", "said"),
    [
        (ENTRY, f"{MAC} dst", "dst: its value is missing"),
        (ENTRY, f"{MAC} dst 192.0.2.1 dst 192.0.2.2", "dst: is given twice"),
        (ENTRY, f"{MAC} static dynamic", "dynamic: is given twice, or contradicts an earlier"),
        (ENTRY, f"{MAC} {MAC}", f"{MAC}: is not expected here; known are: dst port vni via dev"),
        (WANTED, "static nostatic", "nostatic: is given twice, or contradicts an earlier word"),
        (WANTED, MAC, f"{MAC}: is not expected here"),
    ],
)
def test_refused_words(grammar: Grammar, words: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        grammar.parse(words.split())
    assert str(refused.value).startswith(said)


@given(st.lists(st.sampled_from(ENTRY.words()) | st.text()))
def test_any_words_are_parsed_or_refused(words: list[str]) -> None:
    try:
        params = ENTRY.parse(words)
    except ConfigError:
        return
    assert set(params) <= {"mac", "dst", "port", "dst_vni", "via", "dev", "vni", *KIND, "state"}


def destination(dst: str, port: int, vni: int, via: str | None = None) -> Destination:
    """Return a destination that a control plane has given."""
    return {
        "dst": dst,
        "port": port,
        "dst_vni": vni,
        "via": via,
        "extern_learn": True,
        "sequence": None,
    }


@pytest.mark.parametrize(
    ("configured", "extern_learn", "said"),
    [
        (True, True, "configured extern_learn"),
        (False, True, "extern_learn"),
        (True, False, ""),
    ],
)
def test_both_origins_of_a_remote_are_shown(
    configured: bool, extern_learn: bool, said: str
) -> None:
    to = {**destination("192.0.2.2", 4789, 1), "extern_learn": extern_learn}
    assert describe_origin(cast("RemoteEntry", {**to, "configured": configured})) == said


EXTERN = "dynamic extern_learn"
ENTRY_EVENT: MonitorEvent = {
    "event": "added",
    "object": "fdb",
    "vni": 1,
    "dev": "vx0",
    "mac": MAC,
    "destinations": [
        destination("192.0.2.2", 4789, 1),
        destination("192.0.2.3", 4790, 5, "eth1"),
    ],
    "state": "dynamic",
    "extern_learn": True,
    "sticky": False,
}

STORM_EVENT: MonitorEvent = {
    "event": "began",
    "object": "storm",
    "vni": 7,
    "dev": "vx7",
    "traffic": "multicast",
    "direction": "tx",
    "dropped": 5,
}


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            ENTRY_EVENT,
            f"{MAC} dev vx0 dst 192.0.2.2 dst 192.0.2.3 port 4790 vni 5 via eth1 {EXTERN}",
        ),
        (
            {**ENTRY_EVENT, "event": "expired", "destinations": [], "extern_learn": False},
            f"Deleted {MAC} dev vx0 dynamic",
        ),
        (
            {
                **ENTRY_EVENT,
                "extern_learn": False,
                "destinations": [
                    {**destination("192.0.2.2", 4789, 1), "sequence": 3},
                    {**destination("192.0.2.3", 4789, 1), "extern_learn": False},
                ],
            },
            f"{MAC} dev vx0 dst 192.0.2.2 extern_learn seq 3 dst 192.0.2.3 dynamic",
        ),
        ({"event": "added", "object": "vni", "vni": 7, "dev": "vx7"}, "vni 7 dev vx7"),
        ({"event": "deleted", "object": "vni", "vni": 7, "dev": "vx7"}, "Deleted vni 7 dev vx7"),
        (
            {"event": "changed", "object": "mtu", "vni": 7, "dev": "vx7", "mtu": 1400},
            "vni 7 dev vx7 mtu 1400",
        ),
        (
            {
                "event": "changed",
                "object": "config",
                "vni": 7,
                "dev": "vx7",
                "options": {"learning": False, "accept": ["192.0.2.0/24"], "tos": "inherit"},
            },
            'vni 7 dev vx7 learning false accept ["192.0.2.0/24"] tos "inherit"',
        ),
        (
            {
                "event": "blocked",
                "object": "loop",
                "vni": 7,
                "dev": "vx7",
                "remote": "192.0.2.2",
            },
            "Blocked vni 7 dev vx7 remote 192.0.2.2",
        ),
        ({**STORM_EVENT, "remote": None}, "Began vni 7 dev vx7 multicast tx dropped 5"),
        (
            {**STORM_EVENT, "event": "ended", "direction": "rx", "remote": "192.0.2.2"},
            "Ended vni 7 dev vx7 multicast rx remote 192.0.2.2 dropped 5",
        ),
        (
            {"event": "lost", "count": 12},
            "... 12 events lost: they were not read fast enough",
        ),
    ],
)
def test_an_event_is_one_line(event: MonitorEvent, said: str) -> None:
    assert format_event(event) == said


def test_a_table_is_not_cut_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"{number}", "x" * 200, "[bold]y[/]") for number in range(2500)]
    client_command.print_table({"N": "right", "LONG": "", "MARKUP": ""}, rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["N", "LONG", "MARKUP"]
    assert [tuple(words.split()) for words in lines[1:]] == rows


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("1", "äö", "a"), ("22", "\x1b[31m\n", ""), ("3", "漢字", "c")]
    client_command.print_table({"N": "right", "NAME": "", "X": ""}, rows)
    assert capsys.readouterr().out.splitlines() == [
        " N  NAME        X",
        " 1  äö          a",
        r"22  \x1b[31m\n",
        " 3  漢字        c",
    ]
    client_command.print_table({"N": "right"}, [])
    assert capsys.readouterr().out == "(none)\n"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_is_printed_item_by_item(capsys: pytest.CaptureFixture[str], count: int) -> None:
    items = [{"a": [number, {}], "b": "\n"} for number in range(count)]
    client_command.print_json_items(iter(items))
    assert capsys.readouterr().out == json.dumps(items, indent=2) + "\n"


def test_the_origin_of_each_destination_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    to = [destination("192.0.2.2", 4789, 1), destination("192.0.2.3", 4789, 1)]
    to[0]["sequence"] = 3
    entry: FdbEntry = {
        "vni": 1,
        "dev": "vx0",
        "mac": MAC,
        "destinations": [*to, {**to[1], "dst": "192.0.2.4", "extern_learn": False}],
        "state": "static",
        "extern_learn": False,
        "sticky": True,
        "age": None,
        "held": None,
        "tx_frames": 1,
        "rx_frames": 2,
    }
    print_entries([entry], with_vni=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        [MAC, "192.0.2.2", "vx0", "static", "extern_learn", "seq", "3", "sticky", "1", "2"],
        ["192.0.2.3", "extern_learn"],
        ["192.0.2.4"],
    ]


def commands(group: click.Group) -> list[click.Command]:
    nested = [
        commands(one) if isinstance(one, click.Group) else [one] for one in group.commands.values()
    ]
    return [command for some in nested for command in some]


def test_addresses_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """Although some have the name of an emoji in them."""
    shown = ["be:ab:dd:1e:07:72", "fd00:a::b:100:1", ":100:", "[red]", "fe80::cd:1%eth0"]
    client_command.print_table({"MAC": "", ":ab:": ""}, [[address, address] for address in shown])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [[address] * 2 for address in shown]


def test_every_command_that_shows_something_has_json() -> None:
    shows = {"show", "get", "flush", "monitor", "stats", "reload", "doctor", "upgrade", "top"}
    shows |= {"status", "trace", "clear", "restart"}
    for command in commands(cli):
        names = {parameter.name for parameter in command.params}
        if "socket" in names:
            assert ("as_json" in names) is (command.name in shows), command.name


def complete(*words: str) -> list[str]:
    """Return the completions that bash gets for these words."""
    done = subprocess.run(
        [sys.executable, "-m", "vtep"],
        env=os.environ
        | {
            "_PYVTEP_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("pyvtep", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [found.partition(",")[2] for found in done.stdout.splitlines()]


def test_completion() -> None:
    assert {"fdb", "monitor", "set"} <= set(complete(""))
    assert complete("fdb", "add", MAC, "d") == ["dst", "dev", "dynamic"]
    assert complete("fdb", "flush", "nos") == ["nostatic", "nosticky"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vtep", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_PYVTEP_COMPLETE" in done.stdout


@pytest.mark.parametrize("module", ["attrs", "click", "uvloop"])
def test_an_interrupt_during_imports_leaves_no_traceback(module: str) -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['pyvtep', '--vni', '1']\n"
        "runpy.run_module('vtep', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"", b"")


@pytest.mark.parametrize(
    ("words", "target", "why"),
    [
        ("--help", "/dev/full", "No space left on device"),
        ("completion bash", "/dev/full", "No space left on device"),
        ("check-config /dev/stdin", "/dev/full", "No space left on device"),
        ("check-config /dev/stdin", "&-", "Bad file descriptor"),
    ],
)
def test_a_failure_to_write_is_one_line(words: str, target: str, why: str) -> None:
    command = f"echo 'vni = []' | {sys.executable} -m vtep {words} >{target}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    said = f"pyvtep: error: cannot write: {why}\n"
    assert (done.returncode, done.stderr.decode()) == (1, said)


def test_a_group_without_a_command_shows_its_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vtep", "docker"], capture_output=True, text=True, check=False
    )
    assert (done.stdout + done.stderr).startswith("Usage: pyvtep docker ")


def test_a_missing_choice_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vtep", "completion"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pyvtep: error: Missing argument")
    assert done.stderr.endswith("Choose from: bash, zsh, fish\n")
    assert done.stderr.count("\n") == 1
