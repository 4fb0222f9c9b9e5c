"""The search for a path MTU."""

from hypothesis import given
from hypothesis import strategies as st

from vtep.doctor.path_mtu import find_path_mtu


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2100), st.booleans())
def test_the_search_finds_the_limit_with_few_probes(
    one: int, other: int, limit: int, reported: bool
) -> None:
    low, high = min(one, other), max(one, other)
    sizes: list[int] = []

    def probe(size: int) -> tuple[bool, int | None]:
        assert low <= size <= high
        sizes.append(size)
        return size <= limit, limit if reported and size > limit else None

    assert find_path_mtu(low, high, probe) == (min(limit, high) if limit >= low else None)
    assert len(sizes) <= 12
    if limit >= high:
        assert sizes == [high]
    elif reported and limit >= low:
        assert sizes == [high, limit]


def test_a_reported_mtu_counts_only_if_it_passes() -> None:
    reported = {1500: 1400, 1400: 1300}

    def probe(size: int) -> tuple[bool, int | None]:
        return size <= 1234, reported.get(size, 9000)

    assert find_path_mtu(68, 1500, probe) == 1234
