"""The epoch order is a pure function and respects the row groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorlab.data.order import SequentialOrder, ShuffledOrder, SplitFacts, concatenated_ranges, epoch_order


def groups_of(sizes: list[int]) -> np.ndarray:
    return np.array([(index // 3, index % 3, size) for index, size in enumerate(sizes)], np.int64)


sizes_of_groups = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(sizes=sizes_of_groups, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), window=st.integers(1, 40))
def test_every_row_once(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(groups_of(sizes), "digest", seed, epoch, window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(sizes=sizes_of_groups, seed=st.integers(0, 100), window=st.integers(1, 40))
def test_a_window_holds_whole_row_groups(sizes: list[int], seed: int, window: int) -> None:
    """Cutting the order where windows end never cuts a row group: each is read within one window."""
    group_of_row = np.repeat(np.arange(len(sizes)), sizes)
    remaining = group_of_row[epoch_order(groups_of(sizes), "digest", seed, 0, window)].tolist()
    seen: set[int] = set()
    while remaining:
        members: set[int] = set()
        taken: list[int] = []
        while remaining and (len(members) < min(window, len(sizes) - len(seen)) or remaining[0] in members):
            members.add(remaining[0])
            taken.append(remaining.pop(0))
        assert len(taken) == sum(sizes[group] for group in members)
        assert not members & seen
        seen |= members


def test_equal_arguments_give_equal_orders_and_every_argument_counts() -> None:
    groups = groups_of([8] * 20)
    base = epoch_order(groups, "digest", 1, 2, 4)
    assert (epoch_order(groups.copy(), "digest", 1, 2, 4) == base).all()
    for other in [
        epoch_order(groups, "other", 1, 2, 4),
        epoch_order(groups, "digest", 2, 2, 4),
        epoch_order(groups, "digest", 1, 3, 4),
        epoch_order(groups, "digest", 1, 2, 5),
    ]:
        assert (other != base).any()


def test_the_order_of_a_known_key_stays_what_it_is() -> None:
    """A change here changes what every resumed run sees next, and every published curve."""
    order = epoch_order(groups_of([2, 3, 2, 1]), "digest", 0, 0, 2)
    assert order.tolist() == [6, 2, 4, 3, 5, 1, 7, 0]


def test_one_large_window_is_a_uniform_permutation() -> None:
    """Every row comes first about equally often; a window of one group cannot do that within an epoch's group order."""
    groups = groups_of([1, 2, 3])
    first = [int(epoch_order(groups, "digest", seed, 0, 3)[0]) for seed in range(1200)]
    assert (np.abs(np.bincount(first, minlength=6) - 200) < 60).all()  # 4.6 standard deviations


def test_window_of_one_group_keeps_groups_together() -> None:
    order = epoch_order(groups_of([4, 4, 4]), "digest", 0, 0, 1)
    assert [len({row // 4 for row in part}) for part in order.reshape(3, 4).tolist()] == [1, 1, 1]


def test_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window_row_groups"):
        epoch_order(groups_of([4]), "digest", 0, 0, 0)


def test_policies() -> None:
    facts = SplitFacts("digest", groups_of([3, 2]))
    assert SequentialOrder().order(facts, 5, 6).tolist() == [0, 1, 2, 3, 4]
    shuffled = ShuffledOrder(window_row_groups=1)
    assert (shuffled.order(facts, 5, 6) == epoch_order(facts.row_groups, "digest", 5, 6, 1)).all()
    assert shuffled.length(facts) == SequentialOrder().length(facts) == 5


def test_concatenated_ranges() -> None:
    assert concatenated_ranges(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
