"""Populations of real trainings, without Tune: forks of real checkpoints, claims of a restored search, tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from run_states import assert_equal
from toy_engine_program import engine_experiment, train

from sensorlab.cluster.ledger import Ledger, share_ledger
from sensorlab.cluster.lineage import lineage, lineage_data, place_of, population_table
from sensorlab.cluster.search.searcher import SweepSearch
from sensorlab.cluster.sweep_check import check_space
from sensorlab.cluster.sweep_config import decode_values, load_sweep, resolve
from sensorlab.config import as_dict
from sensorlab.engine.checkpoint import CheckpointStore, load
from sensorlab.engine.workers import WorkerGroup
from sensorlab.errors import UserError
from sensorlab.experiment import experiment_from

SPACE = {"optim.lr": {"loguniform": [1e-3, 1e-1]}, "optim.weight_decay": {"loguniform": [1e-6, 1e-2]}}
EPOCHS = 5


def section(**options):
    sweep = {"space": SPACE, "algorithm": "pbt", "scheduler": "none", "num_trials": 3, "objective": "val/mse"}
    return load_sweep({**sweep, "mode": "min", "population": {"generation": 2}, **options})


class Population:
    """A search and its trials, one after another; ``look_alike``: all report the same objective."""

    def __init__(self, root: Path, sweep, look_alike: bool = False) -> None:
        self.root, self.sweep, self.look_alike = root, sweep, look_alike
        root.mkdir(exist_ok=True)
        self.ledger = Ledger(root / "ledger.json", sweep.mode)
        share_ledger(root, self.ledger)
        self.search = SweepSearch(str(root), sweep, 0, EPOCHS)
        self.base = as_dict(engine_experiment(EPOCHS))

    def begin(self, name: str) -> dict | None:
        values = self.search.suggest(name)
        if values in (None, "FINISHED"):
            return None
        values = decode_values(values)
        self.ledger.start(name, values, "", self.root / name)
        return values

    def end(self, name: str, values: dict) -> None:
        config = experiment_from(resolve(self.base, values))
        result = train(config, self.root / name, WorkerGroup.current())
        objective = 1.0 if self.look_alike else result["metrics"]["val/mse"]
        self.ledger.report(name, {"epoch": result["epochs"], "objective": objective})
        self.ledger.end(name, "done")

    def run(self, begin: int = 0, end: int = 99, prefix: str = "t") -> None:
        for index in range(begin, end):
            if (values := self.begin(f"{prefix}{index}")) is None:
                return
            self.end(f"{prefix}{index}", values)

    def weights(self, name: str) -> dict:
        return state(self.root / name)["model"]


def state(run_dir: Path) -> dict:
    latest = CheckpointStore(run_dir / "checkpoints").latest()
    assert latest is not None
    return load(latest.path)


@pytest.fixture(scope="module")
def population(tmp_path_factory) -> Population:
    made = Population(tmp_path_factory.mktemp("population"), section())
    made.run()
    return made


def test_members_that_nobody_replaces_train_as_if_they_were_alone(tmp_path):
    """Every byte of the state that decides on steps, after generations of 2, 2 and 1 epochs."""
    population = Population(tmp_path / "population", section(num_trials=2), look_alike=True)
    population.run()
    assert len(population.ledger.trials) == 6
    assert population.ledger.is_exhausted
    for member in range(2):
        values = {key: population.ledger.trials[f"t{member}"].values[key] for key in SPACE}
        train(experiment_from(resolve(population.base, values)), tmp_path / f"alone{member}", WorkerGroup.current())
        parts, whole = state(population.root / f"t{4 + member}"), state(tmp_path / f"alone{member}")
        assert whole["cursor"]["epoch"] == EPOCHS
        for name in ("model", "optimizer", "cursor", "scaler", "finite", "class_scores", "order_scores", "random"):
            assert_equal(parts[name], whole[name], name)


def test_a_replaced_member_has_the_weights_of_its_donor_and_values_of_its_own(population):
    ledger = population.ledger
    assert [record.state for record in ledger.trials.values()] == ["done"] * 9
    for position, record in enumerate(ledger.trials.values()):
        generation, member = divmod(position, 3)
        assert place_of(record, 3) == (generation, member)
        assert record.values["train.until"] == ("2 epochs", "4 epochs", "5 epochs")[generation]
        if generation == 0:
            assert record.forked_from is None
            continue
        before = list(ledger.trials.values())[3 * generation - 3 : 3 * generation]
        worst = max(before, key=lambda other: other.last_objective)
        best = min(before, key=lambda other: other.last_objective)
        donor = best if before[member] is worst else before[member]
        assert record.forked_from == donor.trial_id
        assert record.values["train.fork.checkpoint"].startswith(f"{donor.run_dir}/checkpoints/step-")
        same = all(record.values[key] == donor.values[key] for key in SPACE)
        assert same == (donor is before[member])
        assert Path(record.values["train.fork.checkpoint"]).is_dir(), "a checkpoint that others need was removed"


def test_the_table_ranks_the_members_and_tells_the_story_of_the_best(population):
    ledger, best = population.ledger, population.ledger.best()
    assert best.objective == min(record.objective for record in ledger.trials.values())
    table, _, story = population_table(ledger, "val/mse", 3).partition("\n\nlineage of ")
    header, _, *rows = [line.split() for line in table.splitlines() if line]
    assert header[:6] == ["rank", "trial", "generation", "member", "from", "val/mse"]
    assert header[6:] == ["lr", "weight_decay", "epochs", "time", "status"]
    assert [row[0] for row in rows[:3]] == ["1", "2", "3"]
    assert {row[3] for row in rows[:3]} == {"0", "1", "2"}
    assert "6 more trials are earlier generations of these members" in table
    assert story.startswith(f"#{best.number}, the best:")
    line = lineage(ledger, best)
    told = [row.split()[0] for row in story.splitlines()[3:]]
    assert told == [f"#{record.number}" for record in line]
    assert [place_of(record, 3)[0] for record in line] == list(range(len(line)))
    data = lineage_data(ledger, best, 3)
    assert data[-1]["trial"] == best.number
    assert data[-1]["values"].keys() == SPACE.keys()
    assert json.loads(json.dumps(data)) == data


def test_a_best_that_later_generations_do_not_reach_stays_in_the_table(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    for position, objective in enumerate([0.3, 0.9, 0.4, 0.5]):
        ledger.note_proposed(f"t{position}", position)
        values = {"lr": position % 2, "train.until": f"{1 + position // 2} epochs"}
        if position >= 2:
            values["train.fork.checkpoint"] = str(tmp_path / f"t{position - 2}" / "checkpoints" / "step-1")
        ledger.start(f"t{position}", values, "", tmp_path / f"t{position}")
        ledger.report(f"t{position}", {"epoch": 1 + position // 2, "objective": objective})
        ledger.end(f"t{position}", "done")
    assert ledger.best().number == 1  # by its own checkpoint, although its member went on with the same values
    rows = [line.split()[:4] for line in population_table(ledger, "o", 2).splitlines()[2:5]]
    assert rows == [["1", "#1", "0", "1"], ["2", "#3", "1", "1"], ["3", "#2", "1", "0"]]


@pytest.mark.parametrize("at", [2, 4])
def test_trials_that_a_killed_driver_had_not_saved_are_claimed_and_not_repeated(tmp_path, population, at):
    """Tune's state is two trials behind: one has ended, one was still running."""
    killed = Population(tmp_path, section())
    killed.run(0, at - 1)
    killed.search.save(str(tmp_path / "search.pkl"))
    killed.run(at - 1, at)
    lost = killed.begin(f"t{at}")
    assert lost is not None

    resumed = Population(tmp_path, section())
    resumed.search.restore(str(tmp_path / "search.pkl"))
    assert [each.trial_id for each in resumed.ledger.forget_unknown({f"t{i}" for i in range(at - 1)})] == [f"t{at}"]
    resumed.run(at, prefix="again")
    records = sorted(resumed.ledger.trials.values(), key=lambda record: record.position)
    assert [record.position for record in records] == list(range(9))
    assert f"t{at - 1}" in resumed.ledger.trials
    assert f"again{at - 1}" not in resumed.ledger.trials
    for record, other in zip(records, population.ledger.trials.values(), strict=True):
        assert record.last_objective == other.last_objective
        assert_equal(resumed.weights(record.trial_id), population.weights(other.trial_id))


def test_a_claim_needs_the_same_values_at_the_same_place(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", "max")
    ledger.note_proposed("a", 3)
    ledger.start("a", {"lr": 0.1}, "", tmp_path / "a")
    assert ledger.unclaimed(3, {"lr": 0.1}, ()) is None  # it has not ended
    ledger.end("a", "done")
    assert ledger.unclaimed(3, {"lr": 0.1}, ()) == "a"
    assert ledger.unclaimed(3, {"lr": 0.1}, {"a"}) is None
    assert ledger.unclaimed(3, {"lr": 0.2}, ()) is None
    assert ledger.unclaimed(4, {"lr": 0.1}, ()) is None
    assert Ledger(ledger.path, "max").unclaimed(3, {"lr": 0.1}, ()) == "a"


BASE = {
    "name": "x",
    "task": {"name": "bev_segmentation", "model": {"encoder": "res18", "latent_dim": 8}},
    "data": {"path": "d"},
    "train": {"duration": "4 epochs"},
}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"task.model.latent_dim": {"choice": [8, 16]}}, r"this changes the model: \d+ of its tensors differ"),
        ({"task.lidar.enabled": {"choice": [False, True]}}, "this changes the model"),
        ({"optim.name": {"choice": ["adamw", "sgd"]}}, "after a change of optim.name: 'adamw' -> 'sgd'"),
        ({"data.global_batch": {"integer": [4, 8]}}, "after a change of data.global_batch: 4 -> 8"),
        ({"seed": {"integer": [1, 9]}}, "after a change of seed: 1 -> 9"),
        ({"train.ema": {"choice": [None, {}]}}, r"an average of the weights \(train.ema\) goes on or it does not"),
        ({"train.duration": {"choice": ["2 epochs", "3 epochs"]}}, "compared after the same epochs"),
        ({"train.early_stop.patience": {"choice": ["2 epochs"]}}, "compared after the same epochs"),
        (
            {
                "optim.lr": {"choice": [0.1, 0.2]},
                "data.global_batch": {"choice": [2], "when": {"optim.lr": 0.1}},
            },
            "change of data.global_batch: 2 -> 8",
        ),
    ],
)
def test_what_a_checkpoint_does_not_survive_is_not_searched(space, message):
    with pytest.raises(UserError, match=message):
        check_space(section(space=space), as_dict(experiment_from(BASE)), experiment_from)


@pytest.mark.parametrize(
    ("train_section", "message"),
    [
        ({"until": "2 epochs"}, "train.until: leave it out"),
        ({"extend": {"duration": "2 epochs"}}, "make that as long as it is to be"),
        ({"early_stop": {"patience": "2 epochs"}}, "replaces members that fall behind"),
    ],
)
def test_settings_that_a_population_makes_itself(train_section, message):
    base = as_dict(experiment_from({**BASE, "train": {**BASE["train"], **train_section}}))
    with pytest.raises(UserError, match=message):
        check_space(section(), base, experiment_from)


def test_what_a_checkpoint_survives_can_be_searched():
    space = {
        **SPACE,
        "task.image.size": {"choice": [[64, 128], [96, 176]]},
        "optim.betas": {"choice": [[0.9, 0.99], [0.9, 0.999]]},
    }
    check_space(section(space=space), as_dict(experiment_from(BASE)), experiment_from)


def test_a_population_that_begins_with_weights_begins_with_them_once(tmp_path):
    population = Population(tmp_path, section())
    population.base["train"]["init"] = {"path": "weights.pt"}
    population.search._last_checkpoint = lambda position: f"/{position}/checkpoints/step-1"
    for index in range(4):
        values = population.begin(f"t{index}")
        config = experiment_from(resolve(population.base, values))
        assert (config.train.init is None) == (index == 3)
        assert (config.train.fork is None) == (index < 3)
        population.ledger.report(f"t{index}", {"epoch": 2, "objective": 1.0})
        population.ledger.end(f"t{index}", "done")


def test_a_generation_waits_for_a_member_that_a_resumed_sweep_starts_again(tmp_path):
    population = Population(tmp_path, section())
    population.run(0, 3)
    population.ledger.end("t2", "failed", "its process died")
    population.ledger.trials["t2"].state = "failed"
    population.search.save(str(tmp_path / "search.pkl"))
    population.ledger.note_exhausted()

    resumed = Population(tmp_path, section())
    resumed.search.restore(str(tmp_path / "search.pkl"))
    resumed.ledger.reopen({"t2", "t1"})
    assert [record.state for record in resumed.ledger.trials.values()] == ["done", "done", "interrupted"]
    assert not resumed.ledger.is_exhausted
    assert resumed.begin("t3") is None
    resumed.ledger.end("t2", "done")
    assert resumed.begin("t3") is not None
