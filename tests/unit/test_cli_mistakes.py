"""Mistakes on the command line: each is explained in one line, with what to type instead."""

import subprocess
import sys
from pathlib import Path

import pytest

from vtep.cli import main
from vtep.control import socket_files

GOOD = "--vni 1 --remote 192.0.2.2"
MAC = "02:00:00:00:00:01"


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make commands find no running pyvtep."""
    monkeypatch.setattr(socket_files, "folder", lambda: tmp_path)


def said(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Return the exit code and the one line of a command that fails."""
    monkeypatch.setattr(sys, "argv", ["pyvtep", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyvtep: error: ")
    assert err.count("\n") == 1
    assert isinstance(ended.value.code, int)
    return ended.value.code, err.removeprefix("pyvtep: error: ").strip()


MISTAKES = [
    # An option that has one value is given twice.
    ("--vni 1 --vni 2", "--vni is given twice (1 and 2); a command has one VNI"),
    (f"{GOOD} --vni=1", "--vni is given twice (1 and 1)"),
    (f"{GOOD} --mtu 1400 --mtu 1300", "--mtu is given twice (1400 and 1300); leave one out"),
    (f"{GOOD} --srcport 1 2 --srcport 3 4", "--srcport is given twice (1 2 and 3 4)"),
    (f"{GOOD} --learning --no-learning", "--learning and --no-learning contradict each other"),
    (f"{GOOD} --no-learning --learning", "--learning and --no-learning contradict each other"),
    (f"{GOOD} --proxy --proxy", "--proxy is given twice; leave one out"),
    (f"{GOOD} --control a --control b", "--control is given twice (a and b)"),
    (f"{GOOD} --remote 192.0.2.2", "--remote 192.0.2.2: is given twice"),
    (
        f"{GOOD} --address 10.0.0.1/24 --address 10.0.0.1/24",
        "--address 10.0.0.1/24: is given twice",
    ),
    (f"{GOOD} --offload tso,tso", "--offload tso: is given twice"),
    ("--config a --config b", "--config is given twice (a and b)"),
    # Numbers that are none, or that no request could carry; an address that is none.
    ("status --watch nan", "Invalid value for '--watch' / '-w': nan is not a number of seconds"),
    ("status --watch inf", "Invalid value for '--watch' / '-w': inf is not in the range"),
    ("exporter --textfile x --interval nan", "Invalid value for '--interval': nan is not"),
    ("trace --size 32001", "Invalid value for '--size': 32001 is not in the range"),
    ("trace --from 999.1.1.1", "--from 999.1.1.1: is not an IP address"),
    # An option without a value, and two that name the same thing.
    (f"{GOOD} --pid-file=", "--pid-file takes the path of a file"),
    (f"{GOOD} --log=", "--log takes the path of a file"),
    ("upgrade --pid 1 --socket x", "--pid and --socket both name a pyvtep; leave one out"),
    ("set --ageing 5 --ageing 6", "--ageing is given twice (5 and 6)"),
    ("set --vni 1 --vni 2 --ageing 5", "--vni is given twice (1 and 2)"),
    ("vni add 7 --tap a --tap b", "--tap is given twice (a and b)"),
    ("docker attach net --vni 1 --vni 2", "--vni is given twice (1 and 2)"),
    ("docker attach net --docker-host a --docker-host b", "--docker-host is given twice (a and b)"),
    ("doctor --dstport 1 --dstport 2", "--dstport is given twice (1 and 2)"),
    ("stats --socket a --socket b", "--socket is given twice (a and b)"),
    (f"fdb add {MAC} dst 192.0.2.3 dst 192.0.2.4", "dst: is given twice"),
    # Values without their option, and options without their value.
    (f"{GOOD} 192.0.2.3", "No such command '192.0.2.3'; each remote has its own option: --remote"),
    (f"{GOOD} --learning no", "No such command 'no'; --learning takes no value: write --no-learn"),
    (f"{GOOD} --learning=no", "Option '--learning' does not take a value: write --no-learning"),
    (f"{GOOD} --proxy on", "No such command 'on'; --proxy takes no value: write --proxy"),
    (f"{GOOD} --address 10.0.0.1 255.255.0.0", "No such command '255.255.0.0'; write the mask as"),
    (f"{GOOD} --offload tso gso", "No such command 'gso'; write a list without blanks: --offload"),
    ("--vni --remote 192.0.2.2", "--vni has no value before --remote, as in: --vni N"),
    ("--remote --vni 1", "--remote has no value before --vni, as in: --remote IP"),
    ("--vni", "Option '--vni' requires an argument, as in: --vni N"),
    (
        "--vni 1 --log-format",
        "Option '--log-format' requires an argument, as in: --log-format text|json",
    ),
    (f"{GOOD} --srcport 5000", "Option '--srcport' requires 2 arguments, as in: --srcport MIN MAX"),
    ("docker attach x --asn 7", "No such option '--asn'; --asn applies to the whole process"),
    ("set --learning no", "--learning takes no value: write --no-learning"),
    ("set --learning auto", "--learning takes no value: write --learning or --no-learning"),
    # Other spellings of options.
    ("-vni 1", "No such option '-vni'; it has two dashes: --vni"),
    ("--id 1", "No such option '--id'; did you mean --vni?"),
    (f"{GOOD} --port 4789", "No such option '--port'; did you mean --dstport?"),
    (f"{GOOD} --nolearning", "No such option '--nolearning'; did you mean --no-learning?"),
    (f"{GOOD} --no-bridge", "No such option '--no-bridge'; to reset it: --bridge none"),
    (
        f"{GOOD} --max_addresses 5",
        "No such option '--max_addresses'; did you mean --max-addresses?",
    ),
    ("-j stats", "No such option '-j'; write it behind the command: pyvtep stats --json"),
    ("--vni 1 stats", "stats takes no --vni before it; write it behind the command: pyvtep stats"),
    (f"fdb add {MAC} --dst 192.0.2.3", "No such option '--dst'; it is a word here, without dashes"),
    ("docker attach net --bridge br0", "No such option '--bridge'; the network says which bridge"),
    # The grammar of `ip link` and `bridge`, and words that are no commands.
    (
        "id 1 remote 192.0.2.2 dev eth0 nolearning",
        (
            "No such command 'id'; options begin with two dashes: "
            "pyvtep --vni 1 --remote 192.0.2.2 --dev eth0 --no-learning"
        ),
    ),
    (
        "vni 1 remote 192.0.2.2",
        (
            "No such command '1'; to start a VTEP: pyvtep --vni 1 --remote 192.0.2.2; to add a VNI "
            "to one that runs: pyvtep vni add 1 --remote 192.0.2.2"
        ),
    ),
    ("start", "No such command 'start'; a VTEP is started with options, such as: pyvtep --vni 1"),
    ("show", "No such command 'show'; add the table: pyvtep fdb show or "),
    ("neighbour show", "No such command 'neighbour'; did you mean: pyvtep neigh show"),
    ("fdb shw", "No such command 'shw'; did you mean: pyvtep fdb show"),
    ("fdb dev vx0", "No such command 'dev'; did you mean: pyvtep fdb show dev vx0"),
    ("remote 192.0.2.3", "No such command '192.0.2.3'; did you mean: pyvtep remote add 192.0.2.3"),
    ("vni remove 7", "No such command 'remove'; did you mean: pyvtep vni del 7"),
    ("vni add 5 --evpn --asn 7", "No such option '--asn'; --asn applies to the whole process"),
    ("set --asn 7", "No such option '--asn'; --asn applies to the whole process; give it when "),
    (
        "--no-fast-path --config /no/file",
        "--no-fast-path cannot be used with --config; write fast-path = false into /no/file",
    ),
    ("help nosuch", "No such command 'nosuch'; commands of pyvtep: capture, check-config, "),
    # Values.
    (
        "--vni 1 --remote 192.0.2.2:47",
        "--remote 192.0.2.2:47: is not an IP address; write the port ",
    ),
    (
        "--vni 1 --remote 192.0.2.2,192.0.2.3",
        (
            "--remote 192.0.2.2,192.0.2.3: is not an IP address but several; write them one by one"
            ": --remote 192.0.2.2 --remote 192.0.2.3"
        ),
    ),
    ("--vni 1 --remote 192.0.2.2/24", "--remote 192.0.2.2/24: is not an IP address but a prefix;"),
    ("--vni 1 --remote [fd00::1]:4790", "--remote [fd00::1]:4790: is not an IP address; write the"),
    (
        "--vni 1 --remote http://host.example:80/",
        (
            "--remote http://host.example:80/: is a URL; write the address or the name alone: "
            "--remote host.example"
        ),
    ),
    (
        "--vni 1 --remote host.example:4790",
        "--remote host.example:4790: has a port; write the port as an option of its own: --remote ",
    ),
    (
        "--vni 1 --remote a.example,b.example",
        "--remote a.example,b.example: is not one remote but several; write them one by one: --rem",
    ),
    ("--vni 1 --remote 192.0.2.256", "--remote 192.0.2.256: is not an IP address; each of its "),
    ("--vni 1 --remote 10.0.0", "--remote 10.0.0: is not an IP address; one has four numbers, as "),
    (f"{GOOD} --ageing 5m", "--ageing 5m: is not a number of seconds; write 300"),
    (f"{GOOD} --tos EF", "--tos EF: is neither a number nor inherit; write 0xb8"),
    (f"{GOOD} --mtu 1400b", "--mtu 1400b: is not a whole number; write it without a unit"),
    (f"{GOOD} --tap none", "--tap none: does not reset the name"),
    ("set --mtu default", "--mtu default: is not a whole number"),
    ("set --remote none --remote 192.0.2.2", "--remote none: resets the option, so it must stand"),
    ("set ageing 60", "ageing: is not expected here; options begin with two dashes: --ageing"),
    ("vni add x", "--vni x: is not a whole number"),
    ("vni add 7 remote 192.0.2.2", "Got unexpected extra arguments (remote 192.0.2.2); options "),
    ("vni del", "Missing argument 'VNI'; usage: pyvtep vni del [OPTIONS] VNI"),
    (f"fdb add {MAC}", "dst: is missing; usage: pyvtep fdb add MAC dst IP "),
    (f"fdb add {MAC} 192.0.2.3", "192.0.2.3: is not expected here; did you mean: dst 192.0.2.3?"),
    (f"fdb add {MAC} remote 192.0.2.3", "remote: is not expected here; did you mean dst?"),
    (
        f"fdb add {MAC} dst 192.0.2.3:47",
        "dst 192.0.2.3:47: is not an IP address; write the port as",
    ),
    ("fdb flush all", "all: is not expected here; without a filter all are selected; known are: "),
    ("neigh add 10.0.0.5", "lladdr: is missing; usage: pyvtep neigh add IP lladdr MAC "),
    (f"neigh add 10.0.0.5 {MAC}", f"{MAC}: is not expected here; did you mean: lladdr {MAC}?"),
    ("stats vx0", "vx0: is not expected here; did you mean: dev vx0?"),
    ("vni show 1", "1: is not expected here; did you mean: --vni 1?"),
    ("set vni 300 --ageing 60", "vni: is not expected here; did you mean --vni?"),
    ("reload --vni 1", "No such option '--vni'; usage: pyvtep reload [OPTIONS]"),
    (
        "monitor foo",
        (
            "'foo' is not one of 'fdb', 'remote', 'vni', 'mtu', 'loop', 'storm', 'config', "
            "'remote-liveness', 'evpn-session'; usage: "
        ),
    ),
    ("completion tcsh", "'tcsh' is not one of 'bash', 'zsh', 'fish'; usage: pyvtep completion "),
    ("stats --watch soon", "--watch soon: must be from 0.1 to 86400 seconds, as in: --watch"),
]


def test_a_mistake_is_explained_in_one_line(
    subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, line in MISTAKES:
        with subtests.test(words):
            code, found = said(words, monkeypatch, capsys)
            assert found.startswith(line)
            assert code == 2


def test_sockets_of_root_are_mentioned_with_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(socket_files, "_RUN", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    code, line = said("fdb show", monkeypatch, capsys)
    assert code == 1
    assert f"those of root are in {tmp_path}: run this with sudo, or as a member" in line


@pytest.mark.parametrize(
    "words",
    [
        "--vni x",
        "--vni 1 --vni 2",
        f"{GOOD} --mtu 9000b",
        "--config /no/such/file",
        "check-config /no/such/file",
        "set --mtu x",
        "docker attach net --vni x",
        "version",
        "help fdb add",
    ],
)
def test_a_mistake_is_reported_without_loading_the_data_path(words: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['pyvtep', *{words.split()!r}]\n"
        "from vtep.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stderr.splitlines()[-1].split())
    assert "vtep.cli.main" in modules
    heavy = {
        "numpy",
        "pyroute2",
        "uvloop",
        "asyncio",
        "pytun",
        "docker",
        "rich",
        "vtep.daemon.vtep",
    }
    assert not modules & heavy


@pytest.mark.parametrize("words", ["help", "help fdb", "help fdb add", "fdb help", "fdb help add"])
def test_help(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pyvtep", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    path = [word for word in words.split() if word != "help"]
    assert " ".join(capsys.readouterr().out.split()).startswith(" ".join(["Usage: pyvtep", *path]))
