"""Each sampling policy against examples that were worked out by hand, and the rules that all of them keep."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorlab.data.order import OrderPolicy, ShuffledOrder, SplitFacts, epoch_order
from sensorlab.data.plan import StreamPlan
from sensorlab.data.random_streams import keyed_generator
from sensorlab.data.sampling_policies import (
    ClassBalancedOrder,
    GroupedOrder,
    ImageWeightsOrder,
    RepeatFactorOrder,
    grouped_batches,
    rounded,
)
from sensorlab.data.sampling_tables import ClassTable, SampleGroups
from sensorlab.errors import UserError

Counts = Sequence[Mapping[str, int]]


def facts_of(samples: int, digest: str = "digest") -> SplitFacts:
    sizes = [4] * (samples // 4) + ([samples % 4] if samples % 4 else [])
    return SplitFacts(digest, np.array([(0, index, size) for index, size in enumerate(sizes)], np.int64))


def table_of(counts: Counts) -> ClassTable:
    return ClassTable.of(iter(counts))


def policies_for(counts: Counts) -> list[OrderPolicy]:
    table = table_of(counts)
    groups = SampleGroups(np.arange(len(counts)) % 3 // 2)
    plain: list[OrderPolicy] = [
        ShuffledOrder(2),
        ClassBalancedOrder(table, 2),
        RepeatFactorOrder(table, 0.5, 2),
        ImageWeightsOrder(table, 2),
    ]
    return plain + [GroupedOrder(policy, groups, 3, pad) for policy in plain for pad in (False, True)]


samples_with_objects = st.lists(
    st.dictionaries(st.sampled_from(["bus", "car", "dog"]), st.integers(0, 4), max_size=3), min_size=6, max_size=30
).filter(lambda counts: any(number for sample in counts for number in sample.values()))
scores_of_classes = st.dictionaries(st.sampled_from(["bus", "car", "dog"]), st.floats(0, 1), min_size=3)


@settings(max_examples=60)
@given(counts=samples_with_objects, scores=scores_of_classes, seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
def test_every_policy_is_a_pure_function_of_one_length(
    counts: Counts, scores: dict[str, float], seed: int, epoch: int
) -> None:
    facts = facts_of(len(counts))
    for policy, same in zip(policies_for(counts), policies_for(counts), strict=True):
        order = policy.order(facts, seed, epoch, scores)
        assert order.dtype == np.int64
        assert len(order) == policy.length(facts)
        assert len(order) == 0 or (order.min() >= 0 and order.max() < len(counts))
        restored: OrderPolicy = pickle.loads(pickle.dumps(policy))
        for other in (policy, same, restored):
            assert (other.order(facts_of(len(counts)), seed, epoch, dict(scores)) == order).all()
            assert repr(other) == repr(policy)
        if not policy.adaptive:
            assert (policy.order(facts, seed, epoch) == order).all()


def test_seed_epoch_and_content_change_every_order_and_the_scores_the_adaptive_ones() -> None:
    counts = [{"car": 1 + row % 3, **({"bus": 1} if row % 5 == 0 else {})} for row in range(60)]
    for policy in policies_for(counts):
        base = policy.order(facts_of(60), 1, 2).tolist()
        assert policy.order(facts_of(60), 3, 2).tolist() != base
        assert policy.order(facts_of(60), 1, 3).tolist() != base
        assert policy.order(facts_of(60, "other"), 1, 2).tolist() != base
        assert (policy.order(facts_of(60), 1, 2, {"car": 0.9, "bus": 0.1}).tolist() != base) == policy.adaptive


@settings(max_examples=30)
@given(counts=samples_with_objects, world=st.sampled_from([1, 2, 3, 6]), epoch=st.integers(0, 3))
def test_the_number_of_workers_only_slices(counts: Counts, world: int, epoch: int) -> None:
    for policy in policies_for(counts)[:4]:
        plan = StreamPlan(facts_of(len(counts)), policy, 7, 6, "pad")
        for batch in range(plan.batches_per_epoch):
            scores = {"bus": 0.2, "car": 0.5, "dog": 0.8}
            parts = [plan.worker_batch(epoch, batch, rank, world, scores).rows for rank in range(world)]
            whole = plan.worker_batch(epoch, batch, scores=scores).rows
            assert np.concatenate(parts).tolist() == whole.tolist()


def test_fingerprints_tell_policies_and_tables_apart_and_stay_short() -> None:
    counts = [{"car": 1, "bus": row % 2} for row in range(5000)]
    other = [{"car": 1, "bus": (row + 1) % 2} for row in range(5000)]
    policies = policies_for(counts) + policies_for(other)[1:4]
    plans = [StreamPlan(facts_of(5000), policy, 0, 12, "drop") for policy in policies]
    assert len({plan.fingerprint for plan in plans}) == len(policies)
    assert max(len(repr(policy)) for policy in policies) < 300


# ------------------------------------------------------------------------------------------------------ copies of rows


@given(
    copies=st.lists(st.integers(0, 5), min_size=4, max_size=40).filter(any),
    window=st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_an_order_with_copies_holds_each_row_as_often_as_asked(copies: list[int], window: int, seed: int) -> None:
    facts = facts_of(len(copies))
    order = epoch_order(facts.row_groups, "digest", seed, 0, window, np.array(copies))
    assert np.bincount(order, minlength=len(copies)).tolist() == copies


def test_copies_of_a_row_are_spread_over_the_epoch() -> None:
    """Not side by side: the copies of a rare sample would fill a batch."""
    copies = np.where(np.arange(400) % 8 == 0, 5, 1)
    order = epoch_order(facts_of(400).row_groups, "digest", 0, 0, 4, copies)
    spread = [np.ptp(np.flatnonzero(order == row)) for row in range(0, 400, 8)]
    # Five uniform places of 600 are 400 apart on average; those of one window would be at most 16.
    assert 350 < np.mean(spread) < 450


# ------------------------------------------------------------------------------------------------------------ rounding


@settings(max_examples=80)
@given(expected=st.lists(st.floats(0, 9), min_size=1, max_size=30).filter(any), total=st.integers(0, 60))
def test_rounding_gives_the_total_and_stays_beside_the_mean(expected: list[float], total: int) -> None:
    counts = rounded(np.array(expected), total, keyed_generator("test", total))
    assert counts.sum() == total
    scaled = np.array(expected) * total / np.sum(expected)
    assert (counts >= np.floor(scaled - 1e-9)).all()
    assert (counts <= np.ceil(scaled + 1e-9)).all()


def test_rounding_is_unbiased() -> None:
    expected = np.array([0.25, 1.5, 0.05, 2.0, 0.2])
    drawn = np.array([rounded(expected, 4, keyed_generator("test", trial)) for trial in range(4000)])
    assert np.abs(drawn.mean(0) - expected).max() < 0.04  # 5 standard deviations of the widest


# -------------------------------------------------------------------------------------------------------- class balance


def test_class_balanced_shares_by_hand() -> None:
    """6 + 2 + 1 samples of 3 classes: 9 // 3 = 3 draws for each class."""
    counts = [{"car": 2}] * 5 + [{"car": 1, "bus": 1}, {"bus": 7}, {"dog": 1}, {}]
    policy = ClassBalancedOrder(table_of(counts), 4)
    assert policy.length(facts_of(9)) == 9
    for epoch in range(20):
        drawn = np.bincount(policy.order(facts_of(9), 0, epoch), minlength=9)
        # dog: its only sample, three times. bus: rows 5 and 6, once or twice. car: 3 of rows 0-5, each at most once.
        assert drawn[7] == 3
        assert drawn[8] == 0  # without objects
        assert drawn[6] in (1, 2)
        assert max(drawn[:5]) <= 1
        assert drawn[:6].sum() + drawn[6] == 6
    means = np.mean([np.bincount(policy.order(facts_of(9), 0, epoch), minlength=9) for epoch in range(2000)], 0)
    # Row 5 is drawn for both of its classes: 3/6 + 3/2.
    assert means.tolist() == pytest.approx([0.5] * 5 + [2.0, 1.5, 3.0, 0.0], abs=0.06)


def test_class_balanced_rounds_the_draws_down_as_published() -> None:
    counts = [{"car": 1}] * 6 + [{"bus": 1}]
    policy = ClassBalancedOrder(table_of(counts), 4)
    assert policy.draws_per_class == 3  # int(7 / 2)
    drawn = np.bincount(policy.order(facts_of(7), 0, 0), minlength=7)
    assert (drawn[:6].sum(), drawn[6]) == (3, 3)


# -------------------------------------------------------------------------------------------------------- repeat factor


def test_repeat_factors_by_hand() -> None:
    """10 samples, threshold 0.9: f_car = 0.9 -> 1, f_bus = 0.4 -> 1.5, f_dog = 0.1 -> 3."""
    counts = [{"car": 5}] * 5 + [{"car": 1, "bus": 2}] * 4 + [{"dog": 1}]
    counts[4] = {}  # f_car = 8 / 10 -> sqrt(9 / 8)
    policy = RepeatFactorOrder(table_of(counts), 0.9, 4)
    car = np.sqrt(0.9 / 0.8)
    factors = [car] * 4 + [1.0] + [1.5] * 4 + [3.0]
    assert policy.factors.tolist() == pytest.approx(factors, rel=1e-15)
    length = int(np.ceil(sum(factors)))
    assert policy.length(facts_of(10)) == length == 15
    drawn = np.array([np.bincount(policy.order(facts_of(10), 0, epoch), minlength=10) for epoch in range(3000)])
    assert (drawn.sum(1) == length).all()
    assert (drawn[:, 9] == 3).all()
    assert set(drawn[:, 5].tolist()) == {1, 2}
    assert (drawn[:, 4] == 1).all()
    # Means are r_i, but for the rounding of the sum from 14.24 to 15, which all fractions share.
    fractions = np.array(factors) - np.floor(factors)
    expected = np.floor(factors) + fractions * (length - np.floor(factors).sum()) / fractions.sum()
    assert drawn.mean(0).tolist() == pytest.approx(expected.tolist(), abs=0.05)


def test_no_rare_class_means_every_sample_once() -> None:
    policy = RepeatFactorOrder(table_of([{"car": 1}] * 8 + [{}]), 1e-3, 4)
    assert sorted(policy.order(facts_of(9), 0, 0).tolist()) == list(range(9))


# -------------------------------------------------------------------------------------------------------- image weights

WEIGHED = [{"car": 3}, {"car": 1, "bus": 1}, {}, {"dog": 2}]  # objects: car 4, bus 1, dog 2


def test_class_weights_by_hand() -> None:
    """Inverse counts 1/4, 1, 1/2 add up to 7/4: weights 1/7 (car), 4/7 (bus), 2/7 (dog)."""
    policy = ImageWeightsOrder(table_of(WEIGHED), 4)
    assert policy.table.classes == ("bus", "car", "dog")
    assert policy.class_weights(None).tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert policy.class_weights({}).tolist() == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    scores = {"bus": 0.5, "car": 0.0, "dog": 1.0}
    assert policy.class_weights(scores).tolist() == pytest.approx([1 / 7, 1 / 7, 0.0])
    weights = policy.table.weighted_objects(policy.class_weights(scores))
    assert weights.tolist() == pytest.approx([3 / 7, 2 / 7, 0.0, 0.0])


@pytest.mark.parametrize("missing", [{}, {"dog": float("nan")}])
def test_a_class_without_a_score_has_the_mean_of_the_others(missing: dict[str, float]) -> None:
    policy = ImageWeightsOrder(table_of(WEIGHED), 4)
    expected = policy.class_weights({"bus": 0.25, "car": 0.75, "dog": 0.5})
    assert policy.class_weights({"bus": 0.25, "car": 0.75, **missing}).tolist() == expected.tolist()
    # So do scores of classes that the training split does not have count in the mean.
    with_van = policy.class_weights({"bus": 0.3, "car": 0.6, "van": 0.6})
    assert with_van.tolist() == pytest.approx([4 / 7 * 0.49, 1 / 7 * 0.16, 2 / 7 * 0.25])


def test_scores_that_are_all_one_leave_the_class_frequencies() -> None:
    policy = ImageWeightsOrder(table_of(WEIGHED), 4)
    ones = {"bus": 1.0, "car": 1.0, "dog": 1.0}
    assert policy.class_weights(ones).tolist() == policy.class_weights(None).tolist()


def test_scores_of_other_classes_and_outside_their_range_are_refused() -> None:
    policy = ImageWeightsOrder(table_of(WEIGHED), 4)
    with pytest.raises(UserError, match=r"scores \['truck'\], and counts \['bus', 'car', 'dog'\]"):
        policy.class_weights({"truck": 0.5})
    with pytest.raises(UserError, match=r"in \[0, 1\], found \{'bus': 50\.0\}"):
        policy.class_weights({"bus": 50.0, "car": 0.5})


def test_image_weights_draw_with_replacement_by_weight() -> None:
    policy = ImageWeightsOrder(table_of(WEIGHED), 4)
    facts = facts_of(4)
    assert policy.length(facts) == 4
    for scores, weights in [(None, [3 / 7, 5 / 7, 0, 4 / 7]), ({"bus": 0.5, "car": 0.0, "dog": 1.0}, [3, 2, 0, 0])]:
        drawn = sum(np.bincount(policy.order(facts, 0, epoch, scores), minlength=4) for epoch in range(3000))
        assert drawn[2] == 0
        share = np.array(weights) / np.sum(weights)
        assert np.abs(drawn / 12000 - share).max() < 0.025  # 5 standard deviations
    # With replacement: the counts of one row are binomial(4, share), also 0 and 3.
    first = [int((policy.order(facts, 0, epoch) == 0).sum()) for epoch in range(300)]
    assert {0, 1, 2, 3} <= set(first)


# -------------------------------------------------------------------------------------------------------- aspect groups


def test_grouped_batches_by_hand() -> None:
    group = np.array([0, 1, 0, 0, 1, 1, 0, 0])  # 5 and 3
    # Batches of 2 come where their second row does; left over are position 7 of group 0 and 5 of group 1.
    whole = [[0, 2], [1, 4], [3, 6]]
    assert grouped_batches(group, 2, 3).tolist() == whole
    # The same number left over in both: the larger group first, filled up from its start.
    assert grouped_batches(group, 2, 4).tolist() == [*whole, [7, 0]]
    assert grouped_batches(group, 2, 5).tolist() == [*whole, [7, 0], [5, 1]]
    # More than that repeats the start of the largest group.
    assert grouped_batches(group, 2, 6).tolist() == [*whole, [7, 0], [5, 1], [0, 2]]
    # A group smaller than a batch fills it with itself.
    assert grouped_batches(np.array([0, 0, 1]), 4, 2).tolist() == [[0, 1, 0, 1], [2, 2, 2, 2]]


@settings(max_examples=80)
@given(
    flags=st.lists(st.integers(0, 1), min_size=4, max_size=60),
    batch=st.integers(1, 7),
    pad=st.booleans(),
    epoch=st.integers(0, 9),
)
def test_every_global_batch_is_of_one_group(flags: list[int], batch: int, pad: bool, epoch: int) -> None:
    facts, groups = facts_of(len(flags)), SampleGroups(np.array(flags))
    shuffled = ShuffledOrder(2)
    policy = GroupedOrder(shuffled, groups, batch, pad)
    order = policy.order(facts, 5, epoch)
    assert len(order) == policy.length(facts) == policy.batches(facts) * batch
    batches = order.reshape(-1, batch)
    assert all(len({flags[row] for row in rows}) == 1 for rows in batches.tolist())
    if pad:
        assert set(order.tolist()) == set(range(len(flags)))
        assert policy.batches(facts) <= -(-len(flags) // batch) + len(set(flags)) - 1
    else:
        assert policy.batches(facts) == len(flags) // batch
    # Whole batches take the rows of their group in the order of the policy inside.
    inside = shuffled.order(facts, 5, epoch).tolist()
    for value in set(flags):
        own = [row for row in inside if flags[row] == value]
        taken = [row for rows in batches.tolist() for row in rows if flags[row] == value]
        whole = len(own) // batch * batch
        assert taken[:whole] == own[:whole]


def test_groups_of_an_order_that_draws_differently_in_every_epoch_keep_its_length() -> None:
    counts = [{"car": 1, "bus": int(row % 7 == 0)} for row in range(50)]
    groups = SampleGroups((np.arange(50) % 5 == 0).astype(np.int64))
    for pad in (False, True):
        policy = GroupedOrder(ImageWeightsOrder(table_of(counts), 4), groups, 8, pad)
        assert policy.adaptive
        for epoch in range(50):
            scores = {"car": epoch / 50, "bus": 0.5}
            batches = policy.order(facts_of(50), 0, epoch, scores).reshape(-1, 8)
            assert len(batches) == (8 if pad else 6)
            assert all(len(set(groups.of_row[rows].tolist())) == 1 for rows in batches)
