"""The example in the help of `pyvtep docker`."""

from click.testing import CliRunner

from vtep.cli.docker import docker


def test_the_example_gives_each_host_a_range_and_a_gateway_of_its_own() -> None:
    text = CliRunner().invoke(docker, ["attach", "--help"], catch_exceptions=False).output
    # As in a shell: the line goes on behind the backslash.
    example = " ".join(text.replace("\\\n", "").split())
    assert (
        "docker network create --subnet 10.18.0.0/16 --ip-range 10.18.1.0/24 "
        "--gateway 10.18.1.1 mynetwork pyvtep docker attach mynetwork --vni 200"
    ) in example
