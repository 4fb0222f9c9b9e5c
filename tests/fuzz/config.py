"""The configuration file: any text gives settings, or problems that each name a line of it."""

import re
from collections.abc import Iterator

import attrs

from vtep.config import Settings
from vtep.config.file import FileError, parse

LEN_MAX = 1024

_PROBLEM = re.compile(r"file:(\d+): .", re.DOTALL)


def run(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        settings = parse(text, "file")
    except FileError as error:
        lines = text.count("\n") + 2
        assert error.problems
        for problem in error.problems:
            found = _PROBLEM.match(problem)
            assert found is not None, problem
            assert 1 <= int(found.group(1)) <= lines, problem
            assert "\n" not in problem, problem
        return
    assert isinstance(settings, Settings)
    assert len({config.vni for config in settings.segments}) == len(settings.segments)
    # What is valid stays valid.
    for config in settings.segments:
        assert attrs.evolve(config) == config


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    yield b'remote = ["192.0.2.2", "192.0.2.3"]\n[[vni]]\nid = 5\nbridge = "br0"\nageing = 12.5\n'
    yield (
        b'control = "none"\nstate = "/s"\nmax-addresses = 100\nlearning = false\n'
        b'srcport = [50000, 50010]\n[[vni]]\nid = 6\nremote = "2001:db8::4"\ntap = "other"\n'
        b'mac = "02:00:00:00:00:01"\naddress = ["10.0.0.1/24"]\ngbp = 5\ninner-vlan = "strip"\n'
    )
    yield b'[[vni]]\nid = 1\ngroup = "239.1.1.1"\ndev = "eth0"\naccept = ["192.0.2.0/24"]\n'
    yield b"vni = []\n"
    yield b'[[vni]]\nid = 1\nremote = "192.0.2.2"\n[[vni]]\nid = 1\nremote = "192.0.2.2"\n'
