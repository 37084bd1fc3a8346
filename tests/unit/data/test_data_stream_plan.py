"""Global batches are fixed; the world size only slices them."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorlab.data.order import OrderPolicy, Scores, SequentialOrder, ShuffledOrder, SplitFacts
from sensorlab.data.plan import Remainder, StreamPlan
from sensorlab.errors import UserError


def make_plan(samples: int, batch: int, remainder: Remainder = "drop", policy: OrderPolicy | None = None) -> StreamPlan:
    sizes = [4] * (samples // 4) + ([samples % 4] if samples % 4 else [])
    groups = np.array([(0, index, size) for index, size in enumerate(sizes)], np.int64).reshape(-1, 3)
    return StreamPlan(SplitFacts("digest", groups), policy or ShuffledOrder(2), 7, batch, remainder)


def global_rows(plan: StreamPlan, epoch: int, batch: int, world: int) -> tuple[list[int], list[bool]]:
    slices = [plan.worker_batch(epoch, batch, rank, world) for rank in range(world)]
    rows = np.concatenate([part.rows for part in slices])
    return rows.tolist(), np.concatenate([part.is_filler for part in slices]).tolist()


@given(samples=st.integers(1, 70), per_worker=st.integers(1, 4), epoch=st.integers(0, 5))
def test_world_size_only_slices(samples: int, per_worker: int, epoch: int) -> None:
    plan = make_plan(samples, 6 * per_worker, "pad")
    for batch in range(plan.batches_per_epoch):
        whole = global_rows(plan, epoch, batch, 1)
        assert (
            whole[0]
            == [int(row) for row in np.resize(plan.epoch_order(epoch), 99 * 24)][
                batch * plan.global_batch : (batch + 1) * plan.global_batch
            ]
        )
        for world in (2, 3, 6):
            assert global_rows(plan, epoch, batch, world) == whole


@given(samples=st.integers(1, 70), batch=st.sampled_from([2, 4, 6, 12]), world=st.sampled_from([1, 2]))
def test_remainders(samples: int, batch: int, world: int) -> None:
    order = make_plan(samples, 1).epoch_order(0).tolist()

    fill = make_plan(samples, batch, "fill")
    parts = [global_rows(fill, 0, number, world) for number in range(fill.batches_per_epoch)]
    counted = [row for rows, fillers in parts for row, filler in zip(rows, fillers, strict=True) if not filler]
    assert counted == order
    assert (fill.samples_per_epoch, fill.dropped_per_epoch) == (samples, 0)
    assert all(len(rows) == batch for rows, _ in parts)

    pad = make_plan(samples, batch, "pad")
    parts = [global_rows(pad, 0, number, world) for number in range(pad.batches_per_epoch)]
    rows = [row for rows, _ in parts for row in rows]
    assert rows == (order * 13)[: len(rows)]
    assert not any(filler for _, fillers in parts for filler in fillers)
    assert (pad.samples_per_epoch, pad.dropped_per_epoch) == (len(rows), 0)

    if samples >= batch:
        drop = make_plan(samples, batch, "drop")
        rows = [row for number in range(drop.batches_per_epoch) for row in global_rows(drop, 0, number, world)[0]]
        assert rows == order[: len(order) // batch * batch]
        assert drop.samples_per_epoch == len(rows)
        assert drop.dropped_per_epoch == samples - len(rows) == samples % batch


def test_cursors_run_over_epoch_borders() -> None:
    plan = make_plan(10, 4)
    assert list(plan.cursors((1, 1), 3)) == [(1, 1), (2, 0), (2, 1)]
    assert list(plan.cursors((1, 2), 3)) == [(2, 0), (2, 1)]
    assert list(plan.cursors((2, 2), 3)) == []
    with pytest.raises(UserError, match="batch 3 of an epoch of 2"):
        plan.normal_cursor((0, 3))


def test_a_batch_that_does_not_divide_names_both_numbers() -> None:
    with pytest.raises(UserError, match="global batch of 10 samples does not divide by 3 workers"):
        make_plan(40, 10).worker_batch(0, 0, 0, 3)


def test_a_split_smaller_than_a_batch_is_refused_unless_it_is_padded() -> None:
    with pytest.raises(UserError, match=r"3 samples, fewer than one global batch of 4.*last_batch: pad"):
        make_plan(3, 4)
    assert global_rows(make_plan(3, 8, "fill", SequentialOrder()), 0, 0, 2) == (
        [0, 1, 2, 0, 1, 2, 0, 1],
        [False] * 3 + [True] * 5,
    )


def test_empty_split_and_bad_batch_are_refused() -> None:
    with pytest.raises(UserError, match="no samples"):
        make_plan(0, 4)
    with pytest.raises(UserError, match="at least 1, got 0"):
        make_plan(8, 0)


def test_batches_beyond_the_epoch_do_not_exist() -> None:
    with pytest.raises(IndexError):
        make_plan(10, 4).worker_batch(0, 2)


def test_pickling_carries_no_orders() -> None:
    plan = make_plan(64, 4)
    before = len(pickle.dumps(plan))
    expected = plan.epoch_order(3)
    copy = pickle.loads(pickle.dumps(plan))
    assert len(pickle.dumps(plan)) <= before
    assert (copy.epoch_order(3) == expected).all()


def test_at_most_neighbouring_epochs_are_remembered() -> None:
    plan = make_plan(64, 4)
    for epoch in range(50):
        plan.epoch_order(epoch)
    assert [epoch for epoch, _ in plan._orders] == [48, 49]


def test_fingerprint_tells_plans_apart() -> None:
    plan = make_plan(64, 4)
    assert make_plan(64, 4).fingerprint == plan.fingerprint == pickle.loads(pickle.dumps(plan)).fingerprint
    others = [
        make_plan(60, 4),
        make_plan(64, 8),
        make_plan(64, 4, "pad"),
        make_plan(64, 4, policy=ShuffledOrder(3)),
        replace(plan, seed=8),
        replace(plan, max_batches=3),
        replace(plan, facts=SplitFacts("other", plan.facts.row_groups)),
        replace(
            plan, facts=SplitFacts(plan.facts.digest, np.array([[0, 0, 40], [0, 1, 24]]))
        ),  # rows grouped otherwise
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 9


def test_a_policy_may_repeat_and_leave_out_rows_but_not_change_its_length() -> None:
    class Twice:
        adaptive = False

        def length(self, facts: SplitFacts) -> int:
            return 4

        def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
            return np.array([1, 1, 2, 2] if epoch == 0 else [3], np.int64)

    plan = make_plan(8, 2, policy=Twice())
    assert global_rows(plan, 0, 1, 2) == ([2, 2], [False, False])
    with pytest.raises(RuntimeError, match="gave 1 rows in epoch 1, not 4"):
        plan.worker_batch(1, 0)


@given(samples=st.integers(8, 70), cap=st.integers(1, 20), remainder=st.sampled_from(["drop", "pad"]))
def test_a_cap_keeps_the_first_global_batches(samples: int, cap: int, remainder: Remainder) -> None:
    plan = make_plan(samples, 4, remainder)
    capped = replace(plan, max_batches=cap)
    assert capped.batches_per_epoch == min(cap, plan.batches_per_epoch)
    assert capped.samples_per_epoch == 4 * capped.batches_per_epoch
    for epoch in range(2):
        for batch in range(capped.batches_per_epoch):
            assert global_rows(capped, epoch, batch, 2) == global_rows(plan, epoch, batch, 1)
    with pytest.raises(IndexError):
        capped.worker_batch(0, capped.batches_per_epoch)
    assert list(capped.cursors((0, 0), 2)) == [(e, b) for e in range(2) for b in range(capped.batches_per_epoch)]


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.max_batches must be at least 1, got 0"):
        replace(make_plan(8, 4), max_batches=0)


def test_the_samples_of_a_capped_evaluation_are_those_that_count() -> None:
    plan = replace(make_plan(10, 4, "fill", SequentialOrder()), max_batches=2)
    assert (plan.samples_per_epoch, plan.dropped_per_epoch) == (8, 2)
    assert replace(plan, max_batches=None).samples_per_epoch == 10


class RolledByScore:
    """Storage order, rolled by the score of class "car"."""

    adaptive = True

    def length(self, facts: SplitFacts) -> int:
        return facts.num_samples

    def order(self, facts: SplitFacts, seed: int, epoch: int, scores: Scores | None = None) -> np.ndarray:
        return np.roll(np.arange(facts.num_samples), int(10 * (scores or {}).get("car", 0)))


def test_an_adaptive_order_follows_the_scores() -> None:
    plan = make_plan(8, 4, policy=RolledByScore())
    assert plan.adaptive
    assert plan.worker_batch(0, 0).rows.tolist() == [0, 1, 2, 3]
    assert plan.worker_batch(0, 0, scores={"car": 0.1}).rows.tolist() == [7, 0, 1, 2]
    assert plan.worker_batch(0, 0, scores={"car": 0.2}).rows.tolist() == [6, 7, 0, 1]
    assert plan.worker_batch(0, 0, scores={}).rows.tolist() == [0, 1, 2, 3]
    assert [key for key, _ in plan._orders] == [0, 0]  # one epoch, the last two scores
    assert plan.scores_key({"b": 0.5, "a": 1.0}) == plan.scores_key({"a": 1.0, "b": 0.5})


def test_other_orders_ignore_scores() -> None:
    plan = make_plan(8, 4)
    assert not plan.adaptive
    assert plan.epoch_order(0, {"car": 0.5}) is plan.epoch_order(0)
