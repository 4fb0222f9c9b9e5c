"""TokenBucket: no more events than its rate and burst allow, and no fewer."""

from hypothesis import given
from hypothesis import strategies as st

from vtep.ratelimit import LineLimit, TokenBucket


@given(
    st.floats(0.5, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_in_no_interval_are_more_events_than_allowed(
    rate: float, burst: int, pauses: list[float]
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), 100.0, list[float]()
    for pause in pauses:
        now += pause
        if bucket.take(now):
            taken.append(now)
    assert taken
    for first, start in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= burst + rate * (end - start) + 1e-6


def test_tokens_are_gained_with_time() -> None:
    bucket = TokenBucket(2, 3)
    assert [bucket.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(0.5), bucket.take(0.5)] == [True, False]
    assert [bucket.take(99.0) for _ in range(4)] == [True, True, True, False]


def test_a_clock_that_goes_back_adds_no_tokens() -> None:
    bucket = TokenBucket(rate=1.0, burst=1.0)
    assert bucket.take(10.0)
    assert not bucket.take(5.0)
    assert not bucket.take(10.5)
    assert bucket.take(11.0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 64)), min_size=1, max_size=100),
)
def test_many_tokens_at_a_time_keep_the_rate(events: list[tuple[float, int]]) -> None:
    bucket, now, taken, largest = TokenBucket(100, 20), 5.0, 0, 0
    for pause, count in events:
        now += pause
        if bucket.take(now, count):
            taken, largest = taken + count, max(largest, count)
        assert bucket.fill(now) > -largest
    assert taken <= 20 + 100 * (now - 5.0) + largest


def test_lines_are_limited_for_each_reason_and_those_left_out_are_counted() -> None:
    lines = LineLimit(60.0, burst=2)
    assert [lines.admit(1.0, "a") for _ in range(5)] == ["", "", None, None, None]
    assert lines.admit(1.0, "b") == ""
    assert lines.admit(62.0, "a") == " (3 more lines like this were left out)"
    assert lines.admit(62.0, "a") is None
    assert lines.admit(183.0, "a") == " (1 more lines like this were left out)"
    assert lines.admit(183.0, "a") == ""
