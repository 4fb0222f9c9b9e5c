"""Fair sharing of a receive queue."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from vtep.forwarding.fairness import FairQueue, OnsetDetector

BATCH = 64
ITEMS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, BATCH)), max_size=300)


def fill(items: list[tuple[int, int]]) -> FairQueue[tuple[int, int, int]]:
    """Return a queue of (number, flow, datagrams)."""
    queue: FairQueue[tuple[int, int, int]] = FairQueue()
    for number, (flow, datagrams) in enumerate(items):
        queue.add(flow, (number, flow, datagrams), datagrams, 100)
    return queue


@given(ITEMS)
def test_each_item_is_taken_once_and_flows_keep_their_order(items: list[tuple[int, int]]) -> None:
    queue, taken = fill(items), []
    while queue:
        taken.append(queue.take())
    assert sorted(taken) == [(number, *item) for number, item in enumerate(items)]
    for flow in range(6):
        numbers = [number for number, of, _ in taken if of == flow]
        assert numbers == sorted(numbers)


@given(ITEMS)
def test_no_flow_gets_more_than_one_that_still_waits(items: list[tuple[int, int]]) -> None:
    queue = fill(items)
    waiting: dict[int, int] = defaultdict(int)
    for flow, datagrams in items:
        waiting[flow] += datagrams
    served = dict.fromkeys(waiting, 0)
    while queue:
        _, flow, datagrams = queue.take()
        waiting[flow] -= datagrams
        served[flow] += datagrams
        least = min((served[each] for each, left in waiting.items() if left), default=served[flow])
        # A quantum of its own turn, and what a batch exceeds it by.
        assert served[flow] <= least + 3 * BATCH


def test_a_light_flow_does_not_wait_for_the_end_of_a_heavy_one() -> None:
    queue = fill([(0, BATCH)] * 100 + [(1, 1), (2, 1)])
    assert {queue.take()[1] for _ in range(3)} == {0, 1, 2}


def test_a_round_ends_when_each_flow_has_had_its_turn() -> None:
    queue = fill([(0, BATCH)] * 3 + [(1, 1), (2, 1)])
    assert queue.rounds == 0
    rounds = []
    while queue:
        _, flow, _ = queue.take()
        rounds.append((flow, queue.rounds))
    # Once it is empty, they are counted anew.
    assert rounds == [(0, 0), (1, 0), (2, 1), (0, 1), (0, 0)]


def test_it_is_full_until_it_is_empty() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add("flow", 1, 1, 4 << 20)
    queue.add("flow", 2, 1, 1)
    assert queue.is_full
    assert [queue.take(), queue.take()] == [1, 2]
    assert not queue
    assert not queue.is_full


def test_one_flow_fills_it_with_fewer_datagrams() -> None:
    queue = fill([(0, BATCH)] * 64)
    assert queue.is_full
    queue.add(1, (1, 1, 1), 1, 100)
    assert not queue.is_full


def onset(waits: list[float], interval: float = 0.001) -> int | None:
    """Return the number of the first wait at which overload begins."""
    detector = OnsetDetector()
    for number, waited in enumerate(waits):
        if detector.note(waited, 10 + number * interval):
            return number
    return None


def test_a_queue_that_is_long_and_stays_so_is_overload() -> None:
    begins = onset([number / 1000 for number in range(200)])
    assert begins is not None
    assert 99 <= begins <= 102
    assert onset([0.5 + 0.05 * (number % 7 == 3) for number in range(200)]) is not None


def test_a_queue_that_gets_shorter_is_none() -> None:
    assert onset([1 - number / 200 for number in range(200)]) is None
    assert onset([0.049] * 1000) is None


def test_a_pause_begins_anew() -> None:
    assert onset([0.06] * 1000, interval=0.06) is None


def test_a_flow_is_alone_some_seconds_after_others() -> None:
    queue = fill([(0, 1)])
    assert not queue.is_shared(10.0)
    queue.add(1, (1, 1, 1), 1, 100)
    assert queue.is_shared(11.0)
    while queue:
        queue.take()
    assert queue.is_shared(13.9)
    assert not queue.is_shared(14.0)
