"""Seeds of a step are pure functions of the run's seed, the worker and the step."""

import torch

from sensorlab.engine.seeds import StepSeeds, splitmix64, step_seed

CPU = torch.device("cpu")


def drawn(seeds: StepSeeds, step: int) -> list[float]:
    seeds.seed(step)
    return torch.rand(4).tolist()


def test_splitmix64_gives_the_published_sequence():
    # The first outputs of the reference implementation (Vigna, splitmix64.c) from state 0.
    assert [splitmix64(k) for k in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_draws_depend_on_seed_worker_and_step_alone():
    first = StepSeeds(CPU, 0, "step", 0)
    draws = [drawn(first, step) for step in range(50)]
    assert [drawn(StepSeeds(CPU, 0, "step", 0), step) for step in reversed(range(50))] == draws[::-1]
    others = [drawn(StepSeeds(CPU, *key), step) for key in [(1, "step", 0), (0, "step", 1)] for step in range(50)]
    assert len({tuple(draw) for draw in [*draws, *others]}) == 150


def test_keys_of_other_types_give_other_seeds():
    assert step_seed(1, "a") != step_seed("1", "a")
    assert 0 <= step_seed("weights") < 2**63
