"""Sweep over BEV vehicle segmentation; ends with a ranked table and a link to the comparison.

python experiments/tune_bev.py                                     laptop: makes the data, starts Ray, sweeps
python experiments/tune_bev.py --config FILE key=value ...         another experiment, other settings
python experiments/tune_bev.py --resume latest                     go on after an interruption
python experiments/tune_bev.py --debug                             two trials of a few steps, to see that it runs
ray job submit --working-dir . -- python experiments/tune_bev.py   the same on a cluster
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))  # a submitted job is a copy of the repository; nothing is installed

from sensorlab.errors import leave_on_interrupt  # noqa: E402

with leave_on_interrupt():
    from sensorlab.cluster.entry import tune_main

if __name__ == "__main__":
    sys.exit(tune_main(None, Path(__file__), ROOT / "experiments" / "configs" / "tune_bev.yaml", __doc__ or ""))
