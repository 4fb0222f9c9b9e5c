"""Two BGP sessions back to back, on a network in memory with a clock of its own."""

import random
from collections import deque
from ipaddress import IPv4Address

from vtep.evpn.session import Session
from vtep.evpn.session_types import (
    Action,
    Close,
    Connect,
    Down,
    Established,
    Failure,
    RefreshRequested,
    Send,
    SessionParameters,
    SessionState,
    Updated,
)

Wire = tuple["Node", int]


class Node:
    """A session, and all that it has reported."""

    def __init__(self, network: "Network", parameters: SessionParameters, router_id: str) -> None:
        self.network = network
        self.session = Session(parameters, lambda: network.random.uniform(0.75, 1))
        self.session.router_id = IPv4Address(router_id)
        self.peer: Node | None = None
        self.open: set[int] = set()
        """Connections that the session has asked for or accepted, and has not closed."""
        self.events: list[Action] = []
        self.sent: dict[int, bytes] = {}
        self.established: int | None = None

    def act(self, actions: list[Action]) -> None:
        """Take actions, and check that they make sense."""
        queue = deque(actions)
        while queue:
            action = queue.popleft()
            match action:
                case Connect(number):
                    assert number not in self.open
                    self.open.add(number)
                    self.network.begin(self, number)
                case Send(number, octets):
                    assert number in self.open
                    self.sent[number] = self.sent.get(number, b"") + octets
                    self.network.send(self, number, octets)
                case Close(number):
                    self.open.discard(number)
                    self.network.close(self, number)
                case Established(number, _, _):
                    assert self.established is None
                    assert number in self.open
                    self.established = number
                case Down(_, _):
                    self.established = None
                case Updated() | RefreshRequested():
                    assert self.established is not None
            if not isinstance(action, Connect | Send | Close):
                self.events.append(action)
        assert (self.session.state is SessionState.ESTABLISHED) is (self.established is not None)

    def downs(self) -> list[Down]:
        return [event for event in self.events if isinstance(event, Down)]


class Network:
    """TCP connections between two nodes: events that wait to be delivered, oldest first on each."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.refuses = False
        self.is_silent = False
        self.queues: dict[tuple[Node, int], deque[bytes | None]] = {}
        """Octets on their way to one end of a connection; None is its end."""
        self.handshakes: deque[tuple[Node, int]] = deque()
        self.far: dict[Wire, Wire] = {}

    def pair(
        self, a: SessionParameters, b: SessionParameters, ids: tuple[str, str]
    ) -> tuple[Node, Node]:
        left, right = Node(self, a, ids[0]), Node(self, b, ids[1])
        left.peer, right.peer = right, left
        return left, right

    def begin(self, node: Node, number: int) -> None:
        self.handshakes.append((node, number))

    def send(self, node: Node, number: int, octets: bytes) -> None:
        far = self.far.get((node, number))
        if far is None or self.is_silent:
            return
        if far in self.queues:
            self.queues[far].append(octets)
        elif (node, number) in self.queues:
            self.queues[node, number].append(None)  # RST

    def close(self, node: Node, number: int) -> None:
        self.queues.pop((node, number), None)
        far = self.far.get((node, number))
        if far in self.queues and not self.is_silent:
            self.queues[far].append(None)

    def cut(self, index: int) -> None:
        """Reset one of the connections."""
        if self.queues:
            ends = list(self.queues)
            self.queues[ends[index % len(ends)]].append(None)

    def choices(self) -> list[tuple[Node, int] | None]:
        """Return the ends that have something to receive; None is a handshake."""
        waiting: list[tuple[Node, int] | None] = [
            end for end, queue in self.queues.items() if queue
        ]
        return [*waiting, *([None] if self.handshakes else [])]

    def deliver(self, index: int) -> None:
        """Deliver the oldest event of one end, or complete a handshake."""
        choices = self.choices()
        if not choices:
            return
        end = choices[index % len(choices)]
        if end is None:
            self._shake(*self.handshakes.popleft())
            return
        node, number = end
        octets = self.queues[end].popleft()
        if octets is None:
            del self.queues[end]
            node.open.discard(number)
            node.act(node.session.closed(number, "reset", self.now))
        else:
            node.act(node.session.received(number, octets, self.now))

    def _shake(self, node: Node, number: int) -> None:
        if number not in node.open or self.is_silent:
            return
        peer = node.peer
        assert peer is not None
        if self.refuses:
            node.open.discard(number)
            refused = node.session.failed(number, Failure.CONNECT_REFUSED, "refused", self.now)
            node.act(refused)
            return
        there, actions = peer.session.accept(self.now)
        self.queues[node, number] = deque()
        if there is None:
            self.queues[node, number].append(None)
        else:
            peer.open.add(there)
            self.queues[peer, there] = deque()
            self.far[node, number], self.far[peer, there] = (peer, there), (node, number)
            peer.act(actions)
        node.act(node.session.connected(number, self.now))

    def advance(self, *nodes: Node) -> None:
        """Advance the clock to the next timer of a node, and handle it."""
        times = [node.session.next_time for node in nodes]
        due = min((time for time in times if time is not None), default=None)
        if due is None:
            return
        self.now = max(self.now, due)
        for node in nodes:
            node.act(node.session.tick(self.now))
            after = node.session.next_time
            assert after is None or after > self.now

    def settle(self) -> None:
        """Deliver everything, in a random order."""
        while self.choices():
            self.deliver(self.random.randrange(8))

    def run(self, *nodes: Node, seconds: float) -> None:
        """Deliver everything and let the time pass."""
        end = self.now + seconds
        self.settle()
        while self.now < end and any(node.session.next_time for node in nodes):
            self.advance(*nodes)
            self.settle()
