"""What a constant prediction scores: the bar that a BEV model has to pass. Reads labels only.

python experiments/baseline_bev.py --config FILE [key=value ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from sensorlab.cluster.datasets import locate_dataset  # noqa: E402
from sensorlab.cluster.start import output_root  # noqa: E402
from sensorlab.data.dataset import PreparedDataset, Split  # noqa: E402
from sensorlab.data.sample import Sample  # noqa: E402
from sensorlab.data.schema import decode_table  # noqa: E402
from sensorlab.errors import exit_on_user_error  # noqa: E402
from sensorlab.experiment import load_experiment  # noqa: E402
from sensorlab.tasks.bev_segmentation import Task  # noqa: E402
from sensorlab.tasks.bev_segmentation.baseline import constant_baseline  # noqa: E402

MEANINGS = {
    "all_foreground": "every cell is foreground",
    "train_prior": "the best mask on the training split: what a model without input can learn",
    "best_constant": "the best mask on the validation split itself: no constant prediction scores higher",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "experiments" / "configs" / "tune_bev.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args()
    config = load_experiment(args.config, args.overrides)
    dataset = PreparedDataset.open(locate_dataset(config.data.path, output_root(config.output_dir)))
    task = Task(config.task)
    train, val = dataset.split(config.data.train_split), dataset.split(config.data.val_split)
    scores = constant_baseline(task, _samples(val, task.columns), _samples(train, task.columns))
    print(f"IoU of constant predictions on {val.name!r} ({val.num_samples} samples)")
    for name, meaning in MEANINGS.items():
        print(f"  {name:15} {scores[name]:.4f}   {meaning}")
    return 0


def _samples(split: Split, columns: tuple[str, ...]) -> Iterator[Sample]:
    for row in range(split.num_samples):
        yield decode_table(split.read([row], columns))[0]


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
