"""Every kind of dimension: its values, its grid, its scale, and that every algorithm keeps to them."""

import importlib.util
import itertools
import json

import numpy as np
import pytest

from sensorlab.cluster.search.dimension import Dimension
from sensorlab.cluster.search.propose import Outcome, new_proposer
from sensorlab.cluster.sweep_config import decode_values, load_sweep, log_scaled, tune_space
from sensorlab.errors import UserError
from sensorlab.report.read import _dimension

SPACE = {
    "choice": {"choice": [1, "a", [2, 3]]},
    "uniform": {"uniform": [-1.0, 1.0]},
    "loguniform": {"loguniform": [1e-4, 1.0]},
    "integer": {"integer": [-2, 5]},
    "loginteger": {"loginteger": [1, 64]},
    "quniform": {"quniform": [0.05, 0.95, 0.1]},
    "qloguniform": {"qloguniform": [0.3, 30, 0.3]},
    "qinteger": {"qinteger": [32, 256, 32]},
    "qloginteger": {"qloginteger": [10, 1000, 20]},
    "conditional": {"qinteger": [3, 10, 4], "when": {"choice": [2, 3]}},
}
GRIDS = {
    "integer": list(range(-2, 6)),
    "loginteger": list(range(1, 65)),
    "quniform": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "qloguniform": [float(f"{0.3 * k:.1f}") for k in range(1, 101)],
    "qinteger": [32, 64, 96, 128, 160, 192, 224, 256],
    "qloginteger": list(range(20, 1001, 20)),
    "conditional": [4, 8],
}
has_cmaes = pytest.mark.skipif(importlib.util.find_spec("cmaes") is None, reason="needs the package cmaes")
ALGORITHMS = [
    {"algorithm": "random"},
    {"algorithm": "optuna"},
    {"algorithm": "optuna", "tpe": {"multivariate": True}},
    {"algorithm": "evolution", "evolution": {"initial": 8}},
    {"algorithm": "bohb", "bohb": {"min_points": 3, "random_fraction": 0.1}},
    {"algorithm": "pbt", "scheduler": "none", "population": {"resample_probability": 0.1}},
    {"algorithm": "pb2", "scheduler": "none"},
    pytest.param({"algorithm": "cmaes"}, marks=has_cmaes),
]


@pytest.mark.parametrize("options", ALGORITHMS, ids=lambda options: "-".join(map(str, options.values()))[:20])
def test_every_algorithm_keeps_to_every_kind(options):
    space = SPACE
    if options["algorithm"] in ("pbt", "pb2"):  # the structure of the network stays: no 'when' is needed to see a grid
        space = {key: spec for key, spec in SPACE.items() if key != "conditional"}
    sweep = load_sweep({"space": space, "num_trials": 8 if sweep_is_population(options) else 30, **options})
    history, seen = [], []
    proposer = new_proposer(sweep, 4)
    for index in range(30):
        proposal = proposer.propose(history)
        values = decode_values(proposal.values)
        score = values["qinteger"] / 256 + values["uniform"]
        history.append(Outcome(proposal, "complete", score, last=score, rungs={1: score}))
        seen.append(values)
        assert -1 <= values["uniform"] <= 1, index
        assert 1e-4 <= values["loguniform"] <= 1
        assert values["choice"] in (1, "a", [2, 3])
        assert ("conditional" in values) == ("conditional" in space and values["choice"] == [2, 3])
        for key, grid in GRIDS.items():
            if key in values:
                assert values[key] in grid, (key, values[key])  # exact: no 0.30000000000000004
                assert type(values[key]) is type(grid[0])
        assert json.loads(json.dumps(values)) == values
    for key in ("quniform", "qinteger"):
        assert len({values[key] for values in seen}) > 3


def sweep_is_population(options):
    return options["algorithm"] in ("pbt", "pb2")


def test_grid_refuses_ranges_of_all_kinds():
    for key, spec in SPACE.items():
        if "choice" not in spec and "when" not in spec:
            with pytest.raises(UserError, match=f"algorithm grid needs 'choice' for every key; {key} has a range"):
                load_sweep({"space": {key: spec}, "algorithm": "grid"})


@pytest.mark.parametrize("key", ["quniform", "qinteger", "qloguniform", "qloginteger"])
def test_draws_have_equal_chances_on_their_scale(key):
    dimension = Dimension.model_validate_json(json.dumps(SPACE[key]))
    domain = tune_space(load_sweep({"space": {key: SPACE[key]}}))[key]
    generator = np.random.default_rng(0)
    drawn = [domain.sample(random_state=generator) for _ in range(4000)]
    grid = GRIDS[key]
    edges = np.array([grid[0] - (grid[1] - grid[0]) / 2, *((a + b) / 2 for a, b in itertools.pairwise(grid)), 0.0])
    edges[-1] = grid[-1] + (grid[1] - grid[0]) / 2
    scaled = np.log(edges) if dimension.is_log else edges
    expected = np.diff(scaled) / (scaled[-1] - scaled[0])
    counts = np.array([drawn.count(value) for value in grid])
    assert counts.sum() == 4000
    assert np.all(np.abs(counts - 4000 * expected) < 5 * np.sqrt(4000 * expected + 1))  # the ends too


@pytest.mark.parametrize("key", [key for key in SPACE if key not in ("choice", "conditional")])
def test_places_are_inverse_and_ordered(key):
    dimension = Dimension.model_validate_json(json.dumps(SPACE[key]))
    low, high = dimension.bounds
    values = GRIDS.get(key) or [low, dimension.at(0.25), dimension.at(0.5), high]
    places = [dimension.place(value) for value in values]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert [dimension.at(place) for place in places] == pytest.approx(values)
    assert dimension.at(0.0) == pytest.approx(low)
    assert dimension.at(1.0) == pytest.approx(high)


def test_the_nearest_value():
    assert Dimension(uniform=(0, 1)).nearest(1.5) == 1.0
    assert Dimension(integer=(0, 3)).nearest(2.6) == 3
    assert Dimension(quniform=(0.1, 0.9, 0.25)).nearest(0.0) == 0.25
    assert Dimension(quniform=(0.1, 0.9, 0.25)).nearest(7.0) == 0.75
    assert Dimension(quniform=(0.1, 0.3, 0.1)).nearest(0.29) == 0.3
    assert Dimension(qloguniform=(1e-5, 1e-3, 1e-5)).nearest(6.6e-5) == 7e-5
    assert Dimension(quniform=(-0.3, 0.3, 0.1)).bounds == (-0.3, 0.3)
    assert Dimension(qinteger=(-5, 5, 2)).bounds == (-4, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"quniform": [0.0, 1.0, 0.0]}, "quantum 0.0 is not positive"),
        ({"qinteger": [0, 8, -2]}, "quantum -2 is not positive"),
        ({"quniform": [0.1, 0.9, 0.5]}, r"1 multiple of the quantum 0.5 lies within \[0.1, 0.9\]; a search needs two"),
        ({"qinteger": [5, 7, 10]}, "no multiple of the quantum 10"),
        ({"qloguniform": [0.0, 1.0, 0.1]}, "qloguniform: bounds must be positive"),
        ({"qloginteger": [0, 8, 2]}, "qloginteger: bounds must be positive"),
        ({"qloguniform": [2.0, 1.0, 0.1]}, "lower bound 2.0 is not below"),
        ({"qinteger": [1, 2]}, "qinteger"),
        ({"qinteger": [1.5, 8, 2]}, "qinteger"),
        ({"uniform": [0, 1, 0.1]}, "uniform"),
    ],
)
def test_faults_of_a_range(spec, message):
    with pytest.raises(UserError, match=message):
        load_sweep({"space": {"a": spec}})


def test_logarithmic_kinds_are_known_to_tracking_and_report():
    sweep = load_sweep({"space": {key: spec for key, spec in SPACE.items() if key != "conditional"}})
    logs = ("loguniform", "loginteger", "qloguniform", "qloginteger")
    assert log_scaled(sweep) == logs
    for key, spec in SPACE.items():
        shown = _dimension(key, spec)
        assert shown.is_log == (key in logs), key
        assert shown.is_integer == sweep_kind_is_integer(spec), key
        assert bool(shown.bounds) != bool(shown.choices), key


def sweep_kind_is_integer(spec):
    return any(kind.endswith("integer") for kind in spec)
