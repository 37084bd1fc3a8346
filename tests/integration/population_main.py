"""A population of real trainings as a program of its own, for tests that kill it: ROOT [resume] [JSON options]."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "cluster"))

from toy_engine_program import ToyEngineProgram, engine_experiment

from sensorlab.cluster.start import connect, disconnect
from sensorlab.cluster.sweep import SweepPlan, run_sweep, with_objective
from sensorlab.cluster.sweep_config import load_sweep


def main() -> int:
    root, resume, options = Path(sys.argv[1]), sys.argv[2] == "resume", json.loads(sys.argv[3])
    section = {
        "space": {"optim.lr": {"loguniform": [1e-4, 1e-1]}, "optim.weight_decay": {"loguniform": [1e-6, 1e-2]}},
        "scheduler": "none",
        "num_trials": 3,
        "objective": "val/mse",
        "mode": "min",
        "max_concurrent": 2,
    }
    sweep = load_sweep(section | options.get("sweep", {}))
    experiment = with_objective(engine_experiment(options.get("epochs", 3)), sweep)
    plan = SweepPlan("s", root, experiment, sweep, "d", f"sqlite:///{root}/mlruns.db")
    if resume:
        plan = SweepPlan.load(root, "s")
    cluster = connect(num_cpus=2, dashboard=False)
    try:
        return run_sweep(plan, cluster, ToyEngineProgram(**options.get("program", {})), resume=resume).exit_code
    finally:
        disconnect()


if __name__ == "__main__":
    sys.exit(main())
