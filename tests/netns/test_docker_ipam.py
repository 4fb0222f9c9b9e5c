"""The IPAM driver with two real Docker engines: no address is assigned on both hosts."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.netns.hosts import address, wait_until
from tests.netns.test_docker_driver import A, B, Node, nodes
from vtep.testing.lab import Lab

__all__ = ["nodes"]

CONTAINERS = 20

_START_ALL = """
for number in $(seq %d); do
    docker run --detach --name "box$number" --net mynetwork --stop-signal KILL \\
        busybox sleep 1000 >/dev/null || echo "box$number failed" &
done
wait
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with Lab() as lab:
        a, b = lab.host("host-106"), lab.host("host-107")
        lab.wire(a, b)
        for host, own in ((a, A), (b, B)):
            address(host, "eth0", f"{own}/24")
        folder = tmp_path_factory.mktemp("ipam")
        nodes = Node(a, a, A, B, folder), Node(b, b, B, A, folder)
        yield nodes
        for node in nodes:
            node.close()


def create(nodes: tuple[Node, Node], *options: str) -> None:
    for node in nodes:
        node.create("--ipam-driver", "pyvtep", *options)


def addresses(node: Node) -> dict[str, list[str]]:
    """Return the addresses of the containers on a host."""
    (network,) = json.loads(node.docker("network", "inspect", "mynetwork"))
    return {
        container["Name"]: [
            container[key].partition("/")[0]
            for key in ("IPv4Address", "IPv6Address")
            if container[key]
        ]
        for container in network["Containers"].values()
    }


def test_containers_that_start_at_once_get_different_addresses(nodes: tuple[Node, Node]) -> None:
    create(nodes, "--subnet", "10.18.0.0/16", "--ip-range", "10.18.7.0/24")
    # Both hosts at the same time, and all containers of each.
    with ThreadPoolExecutor() as pool:
        script = _START_ALL % CONTAINERS
        starts = [pool.submit(node.engine.shell, "sh", "-ec", script) for node in nodes]
    assert [start.result() for start in starts] == ["", ""]
    found = [own for node in nodes for each in addresses(node).values() for own in each]
    assert len(found) == len(set(found)) == 2 * CONTAINERS
    assert all(own.startswith("10.18.7.") for own in found)
    # They are on one segment.
    a, b = nodes
    (other,) = addresses(b)["box1"]
    wait_until(lambda: a.engine.reaches("box1", other), f"a ping to {other}")
