"""Runs a toy sweep as a program of its own, for tests that kill it: ROOT NAME [resume] [JSON options]."""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "cluster"))

from toy_program import ToyProgram

from sensorlab.cluster.start import connect, disconnect
from sensorlab.cluster.sweep import SweepPlan, run_sweep, with_objective
from sensorlab.cluster.sweep_config import load_sweep, with_more
from sensorlab.errors import exit_on_user_error
from sensorlab.experiment import experiment_from


def main() -> int:
    root, name, resume = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "resume"
    options = json.loads(sys.argv[4])
    workers = options.get("workers", 1)
    tree = {
        "name": "toy",
        "task": {"name": "bev_segmentation"},
        "data": {"path": "d"},
        "train": {"duration": "6 epochs"},
        "resources": {"num_workers": workers, "cpus_per_worker": 0.5, "data_cpus": 0.25},
    }
    section = {
        "space": {"optim.lr": {"loguniform": [1e-4, 1e-1]}},
        "algorithm": options.get("algorithm", "random"),
        "num_trials": 4,
        "max_concurrent": 1,
        "asha": {"grace_epochs": 2},
        **options.get("sweep", {}),
    }
    sweep = load_sweep(section)
    plan = SweepPlan(
        name, root, with_objective(experiment_from(tree), sweep), sweep, "d", f"sqlite:///{root}/mlruns.db"
    )
    if resume:
        plan = SweepPlan.load(root, name)
        plan = dataclasses.replace(plan, sweep=with_more(plan.sweep, options.get("raised", [])))
    cluster = connect(num_cpus=2, dashboard=workers > 1)
    try:
        return run_sweep(plan, cluster, ToyProgram(**options.get("program", {})), resume=resume).exit_code
    finally:
        disconnect()


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
