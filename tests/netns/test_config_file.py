"""`pyvtep --config` and `check-config`: several VNIs from a file, and reloading it."""

import signal
import sys
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    has_device,
    mac_of,
    ping,
    wait_until,
)
from tests.netns.test_errors import run_refused

TWO = """
control = "none"
remote = "{remote}"

[[vni]]
id = 5
address = "10.0.5.{own}/24"

[[vni]]
id = 6
address = "10.0.6.{own}/24"
ageing = 60
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    return folder / "pyvtep.toml"


def reload(vtep: Pyvtep, *words: str) -> None:
    before = len(vtep.log)
    vtep.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(word in vtep.log[before:] for word in words), " and ".join(words))


def test_reload_changes_only_what_differs_in_the_file(pair: Pair, start: Start, file: Path) -> None:
    a, b = pair
    file.write_text(TWO.format(remote="192.0.2.2", own=1))
    other = file.with_name("other.toml")
    other.write_text(TWO.format(remote="192.0.2.1", own=2))
    vtep = start(a, "--config", str(file))
    start(b, "--config", str(other))
    assert "vni 5 on vx5 (mtu 1450) to 192.0.2.2 over eth0" in vtep.log
    assert "vni 6 on vx6 (mtu 1450) to 192.0.2.2 over eth0" in vtep.log
    for vni in (5, 6):
        ping(a, f"10.0.{vni}.2", count=1)
    assert "2 VNIs, together" in vtep.report()
    mac = mac_of(a, "vx5")

    file.write_text(TWO.format(remote="192.0.2.2", own=1).replace("id = 6", "id = 7"))
    reload(vtep, f"read {file} again: 1 added, 1 deleted", "vni 7 on vx7 (mtu 1450) to")
    assert not has_device(a, "vx6")
    assert has_device(a, "vx7")
    reload(vtep, f"read {file} again: nothing is different")

    failed = "reload failed, nothing has changed"
    good = file.read_text()
    bad = good.replace("ageing = 60", "ageing = 60\nttl = 300\nmtuu = 1400").replace("7", "8")
    file.write_text(bad)
    reload(
        vtep,
        f"{failed}: {file}:13: ttl 300: must be from 1 to 255, or auto, or inherit",
        f"{failed}: {file}:14: mtuu: unknown key; did you mean mtu?",
    )
    file.write_text(good.replace("7", "8").replace("ageing = 60", "bridge = 'eth0'"))
    reload(
        vtep,
        f"{failed}: vni 8: --bridge eth0: the kernel refused vx8 as a port",
    )
    file.unlink()
    reload(vtep, f"{failed}: {file}: cannot read it: No such file")
    assert has_device(a, "vx7")
    assert mac_of(a, "vx5") == mac
    ping(a, "10.0.5.2", count=1)
    assert vtep.stop() == 0
    assert not has_device(a, "vx5")


def test_reload_creates_a_removed_tap_again(pair: Pair, start: Start, file: Path) -> None:
    a, _ = pair
    file.write_text(TWO.format(remote="192.0.2.2", own=1))
    vtep = start(a, "--config", str(file))
    a.run("ip", "link", "del", "vx6")
    wait_until(lambda: "vni 6 has ended: the TAP device vx6 was removed" in vtep.log, "its end")
    reload(vtep, f"read {file} again: 1 added")
    assert has_device(a, "vx6")
    for vni in (5, 6):
        a.run("ip", "link", "del", f"vx{vni}")
    assert vtep.wait() == 1
    assert "was removed" in vtep.log


def test_check_config(pair: Pair, file: Path) -> None:
    a, _ = pair
    file.write_text(TWO.format(remote="192.0.2.2", own=1))
    assert (
        a.run(sys.executable, "-m", "vtep", "check-config", str(file))
        == f"{file}: valid; vni 5, 6\n"
    )
    file.write_text(TWO.format(remote="172.31.0.300", own=1).replace("id = 6", "id = 5"))
    said = run_refused(a, "check-config", str(file), code=2)
    assert said == (
        f"{file}:3: remote 172.31.0.300: is not an IP address; each of its numbers is at most 255\n"
        f"{file}:10: id 5: defined twice; each VNI can be defined once\n"
    )
    file.write_bytes(b"# \n\n\xff")
    assert run_refused(a, "check-config", str(file), code=2) == f"{file}:3: is not UTF-8 text\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config", "/no/such"], 1, "/no/such: cannot read it: No such file"),
        (["--config", "/"], 1, "/: has no configuration file; write one"),
        (["--config", "{file}", "--vni", "1"], 2, "--vni cannot be used with --config"),
        (["--config", "{file}", "--accept-any"], 2, "--accept-any cannot be used with --config"),
        (["--config", "{file}", "check-config", "{file}"], 2, "check-config takes no --config"),
        (["--config", "{file}"], 2, "{file}:1: remotee: unknown key"),
        (["check-config", "/no/such"], 1, "/no/such: cannot read it: No such file"),
        (["check-config"], 2, "Missing argument 'FILE'"),
    ],
)
def test_refused(pair: Pair, file: Path, arguments: list[str], code: int, words: str) -> None:
    file.write_text("remotee = 1")
    given = [argument.format(file=file) for argument in arguments]
    said = run_refused(pair[0], *given, code=code)
    assert words.format(file=file) in said
    assert said.count("\n") == 1


def test_process_options_beside_a_file(pair: Pair, start: Start, file: Path) -> None:
    a, _ = pair
    file.write_text(TWO.format(remote="192.0.2.2", own=1).replace('"none"', '"/no/such"'))
    vtep = start(a, "--config", str(file), "--control", "none")
    reload(vtep, "nothing is different")
    assert "restart" not in vtep.log
    file.write_text(f'state = "{file}.state"\n{file.read_text()}')
    reload(vtep, "nothing is different", "state has changed in", "which takes a restart")
    assert vtep.stop() == 0


def test_vni_without_a_remote(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(a, "--vni", "1", "--tap", "vx0")
    assert "vni 1 on vx0 (mtu 1450) to no remote yet, UDP port 4789" in vtep.log
    address(a, "vx0", "10.0.0.1/24")
    a.run("ping", "-c1", "-W1", "10.0.0.2", check=False)
    assert vtep.counter("no_remote") > 0
