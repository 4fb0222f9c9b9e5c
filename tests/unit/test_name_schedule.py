"""When names are looked up, and what becomes of the answers: properties over any history."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from vtep.config import Config
from vtep.config.host_names import HostName, parse_host_name, usable_addresses
from vtep.host.name_schedule import (
    RETRY_MAX_S,
    RETRY_MIN_S,
    TTL_MAX_S,
    TTL_MIN_S,
    TTL_UNKNOWN_S,
    NameAnswer,
    NameSchedule,
)

A, B, C = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
SIX, SEVEN = IPv6Address("2001:db8::6"), IPv6Address("2001:db8::7")
WEEK = 7 * 86400.0

addresses = st.lists(st.sampled_from((A, B, C, SIX, SEVEN)), max_size=6).map(tuple)
answers = st.builds(
    lambda found, ttl, failed: NameAnswer(
        found, ttl, "" if found else "there is no such name", failed
    ),
    addresses,
    st.none() | st.floats(0, WEEK),
    st.frozensets(st.sampled_from((4, 6))),
)


def ask(schedule: NameSchedule, answer: NameAnswer, now: float) -> bool:
    assert schedule.take_due(now) == ["x"]
    assert schedule.take_due(now) == []  # It is busy.
    return schedule.on_answer("x", answer, now)


def pause(schedule: NameSchedule, answer: NameAnswer, now: float) -> float:
    ask(schedule, answer, now)
    delay = schedule.delay(now)
    assert delay is not None
    return delay


@given(st.lists(st.tuples(answers, st.floats(0, 100), st.sampled_from(("", "again", "retry")))))
def test_any_history(history: list[tuple[NameAnswer, float, str]]) -> None:
    schedule, now = NameSchedule(), 0.0
    schedule.want({"x": ()}, now)
    state = schedule.states["x"]
    failures = 0
    for answer, late, meanwhile in history:
        delay = schedule.delay(now)
        assert delay is not None
        now += delay + late
        before = state.addresses
        assert schedule.take_due(now) == ["x"]
        assert schedule.delay(now) is None
        if meanwhile == "again":
            schedule.look_up_again()
        elif meanwhile == "retry":
            schedule.retry_failed(now)
        changed = schedule.on_answer("x", answer, now)
        assert changed == (state.addresses != before)
        # Nothing but a good answer takes addresses away, and only of the versions that it is about.
        if answer.addresses:
            kept = {each for each in before if each.version in answer.failed}
            assert set(state.addresses) == {*answer.addresses, *kept}
            assert not state.error
            failures = 0
        else:
            assert state.addresses == before
            assert state.error
            failures += 1
        assert state.failures == failures
        delay = schedule.delay(now)
        assert delay is not None
        if meanwhile == "again":
            assert delay == 0
        elif answer.addresses:
            assert TTL_MIN_S - 1e-3 <= delay <= TTL_MAX_S + 1e-3
        else:
            assert RETRY_MIN_S - 1e-3 <= delay <= RETRY_MAX_S + 1e-3


def test_ttl_decides_within_bounds() -> None:
    schedule, now = NameSchedule(), 0.0
    schedule.want({"x": ()}, now)
    for ttl, expected in (
        (0, TTL_MIN_S),
        (60, 60),
        (WEEK, TTL_MAX_S),
        (None, TTL_UNKNOWN_S),
    ):
        assert pause(schedule, NameAnswer((A,), ttl), now) == expected
        now += expected
    failure = NameAnswer(error="no name server has answered")
    waits = []
    for _ in range(8):
        waits.append(pause(schedule, failure, now))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]
    assert schedule.states["x"].addresses == (A,)
    assert pause(schedule, NameAnswer((A,), 60), now) == 60
    now += 60
    assert pause(schedule, failure, now) == RETRY_MIN_S  # The backoff has begun anew.


def test_rotated_answers_are_the_same() -> None:
    schedule = NameSchedule()
    schedule.want({"x": (A,)}, 0)
    assert schedule.states["x"].addresses == (A,)
    assert ask(schedule, NameAnswer((B, SIX, A), 5), 0)
    assert not ask(schedule, NameAnswer((A, B, SIX, A), 5), 5)
    # The servers for AAAA have failed: that there is none means nothing. Then there is none.
    assert not ask(schedule, NameAnswer((A, B), 5, failed=frozenset({6})), 10)
    assert ask(schedule, NameAnswer((A, B), 5), 15)
    assert set(schedule.states["x"].addresses) == {A, B}


def test_names_come_and_go() -> None:
    schedule = NameSchedule()
    assert schedule.delay(0) is None
    schedule.want({"x": (), "y": ()}, 0)
    assert schedule.take_due(0) == ["x", "y"]
    schedule.want({"x": ()}, 0)
    assert not schedule.on_answer("y", NameAnswer((A,), 9), 1)
    assert schedule.on_answer("x", NameAnswer((A,), 9), 1)
    # What is not asked for is no answer, such as one to a former process of the same name.
    assert not schedule.on_answer("x", NameAnswer((B,), 9), 1)
    schedule.want({"x": (B,), "y": ()}, 2)
    assert schedule.states["x"].addresses == (A,)
    assert schedule.take_due(2) == ["y"]
    schedule.look_up_again()
    assert schedule.take_due(3) == ["x"]


def test_a_change_of_the_network_is_a_reason_to_retry_but_not_all_the_time() -> None:
    schedule = NameSchedule()
    schedule.want({"x": (), "y": ()}, 0)
    schedule.take_due(0)
    schedule.on_answer("y", NameAnswer((A,), 3600), 0)
    now = 0.0
    for _ in range(6):
        schedule.on_answer("x", NameAnswer(error="no name server has answered"), now)
        now += schedule.delay(now) or 0
        schedule.take_due(now)
    schedule.on_answer("x", NameAnswer(error=""), now)
    assert schedule.states["x"].error  # Never empty: it would look like a success.
    schedule.retry_failed(now)
    assert schedule.delay(now) == RETRY_MIN_S
    schedule.retry_failed(now + 10)
    assert schedule.take_due(now + 10) == ["x"]  # And y is not.


# --- names, and which of their addresses are used ---------------------------------------------


@given(st.text(max_size=20) | st.from_regex(r"[a-z0-9.:_-]{1,20}", fullmatch=True))
def test_a_name_is_in_normal_form(text: str) -> None:
    name = parse_host_name(text)
    if name is not None:
        assert parse_host_name(name.name) == name
        assert str(name) == text.lower()
        assert not name.name.removesuffix(".").rpartition(".")[2].isdigit()
        assert Config(vni=1, remote=text).remote in ((name,), ())  # "none" resets the option.


@given(addresses, st.sampled_from(((), (A,), (SIX,), (A, SIX))))
def test_addresses_of_one_version_are_used(
    found: tuple[IPv4Address | IPv6Address, ...],
    local: tuple[IPv4Address | IPv6Address, ...],
) -> None:
    config = Config(vni=1, remote="x", local=local).with_addresses({"x": found})
    used = config.remote_addresses
    assert set(used) <= set(found) - set(local)
    assert len({each.version for each in used}) <= 1
    for version in {each.version for each in local} or {4, 6}:
        if any(each.version == version and each not in local for each in found):
            assert used
    # All addresses of the chosen version count.
    assert {each for each in found if used and each.version == used[0].version} - {*local} == {
        *used
    }
    assert config == Config(vni=1, remote="x", local=local)


def test_addresses_that_cannot_be_remotes_are_left_out() -> None:
    bad = ("0.0.0.0", "239.1.1.1", "127.0.1.1", "255.255.255.255", "10.0.0.7")
    config = Config(vni=1, remote=["x", "192.0.2.9"], address="10.0.0.1/24")
    assert usable_addresses(config, (*map(IPv4Address, bad), A)) == (A,)
    link = IPv6Address("fe80::1")
    assert usable_addresses(config, (link, SIX)) == (SIX,)
    assert usable_addresses(Config(vni=1, dev="eth0"), (link,)) == (link,)
    assert usable_addresses(Config(vni=1, dev="eth0"), (IPv6Address("fe80::1%eth1"),)) == ()
    # Those that are configured decide for a name that has both.
    six = Config(vni=1, remote=["x", str(SEVEN)])
    assert usable_addresses(six, (A, SIX)) == (SIX,)
    group = Config(vni=1, remote="x", group="ff05::100", dev="eth0")
    assert usable_addresses(group, (A, SIX)) == (SIX,)


def test_an_address_counts_once() -> None:
    config = Config(vni=1, remote=[str(B), "x", "y"])
    resolved = config.with_addresses({"x": (A, B), "y": (A, C)})
    assert resolved.remote_addresses == (B, A, C)
    assert resolved.with_addresses({}) is resolved
    assert resolved.remote[1] == HostName("x")


def test_options_that_depend_on_the_version_wait_for_an_answer() -> None:
    both = Config(vni=1, remote="x", local=[str(A), str(SIX)], flowlabel=5)
    assert both.versions == (4, 6)
    assert both.with_addresses({"x": (B,)}).versions == (4,)
