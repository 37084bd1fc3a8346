"""Train BEV vehicle segmentation once.

python experiments/train_bev.py                                    the laptop experiment, without its sweep
python experiments/train_bev.py --config FILE key=value ...        another experiment, other settings
python experiments/train_bev.py --resume latest                    go on from the latest checkpoint
python experiments/train_bev.py --resume latest train.extend.duration='5 epochs'    train longer than was planned
python experiments/train_bev.py --validate latest                  measure the best checkpoint again, train nothing
python experiments/train_bev.py --debug                            a few steps of a small network, in seconds
python experiments/train_bev.py --overfit 4                        can it learn four samples by heart?
python experiments/train_bev.py --find-lr                          which learning rates are worth trying
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))  # a submitted job is a copy of the repository; nothing is installed

from sensorlab.errors import leave_on_interrupt  # noqa: E402

with leave_on_interrupt():
    from sensorlab.cluster.entry import train_main

if __name__ == "__main__":
    sys.exit(train_main(None, Path(__file__), ROOT / "experiments" / "configs" / "tune_bev.yaml", __doc__ or ""))
