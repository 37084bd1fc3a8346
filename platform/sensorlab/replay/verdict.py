"""Whether a repetition gave what was recorded: every loss and metric, and the weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sensorlab.engine.checkpoint import CheckpointInfo, CheckpointStore
from sensorlab.engine.compare import Series, first_difference

Kind = Literal[
    "bit-equal", "numbers bit-equal (no weights were recorded to compare)", "equal within the tolerance", "different"
]
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Attributes:
        kind: of everything that was compared.
        numbers: how many numbers, over how many steps.
        difference: where the two first differ (step and name, or tensor), in words; empty for equal bits.
        weights: what is known of the weights, in words.
    """

    kind: Kind
    numbers: str
    difference: str
    weights: str

    @property
    def is_equal(self) -> bool:
        return self.kind != "different"


@dataclass(frozen=True)
class WeightsCheck:
    """The weights of two runs at one step. ``largest``: of the differences; NaN if it is not known."""

    text: str
    largest: float = 0.0
    difference: str = ""
    is_known: bool = True  # there were weights to compare


def compared(recorded: Series, repeated: Series, steps: int | None) -> tuple[Series, Series]:
    """The numbers of both that must be equal: all, or those of the first ``steps`` steps.

    A run that ends early reports and evaluates at its last step; the recorded run may not have done so there.
    """
    if steps is None:
        return recorded, repeated
    left = {key: value for key, value in recorded.items() if key[0] <= steps}
    return left, {key: value for key, value in repeated.items() if key[0] < steps or key in left}


def judge(recorded: Series, repeated: Series, weights: WeightsCheck, tolerance: float) -> Verdict:
    """Compare the numbers (see :func:`compared`) and take in what is known of the weights.

    Args:
        tolerance: absolute for magnitudes up to 1, relative above.
    """
    numbers = f"{len(recorded)} numbers over {len({step for step, _ in recorded})} steps"
    exact = first_difference(recorded, repeated) or weights.difference
    kind: Kind = "bit-equal" if weights.is_known else "numbers bit-equal (no weights were recorded to compare)"
    if exact:
        beyond = first_difference(recorded, repeated, tolerance)
        within = beyond is None and weights.largest <= tolerance  # NaN is not
        kind = "equal within the tolerance" if within else "different"
        exact = beyond or exact
    return Verdict(kind, numbers, exact, weights.text)


def check_weights(recorded_dir: Path | None, recorded_tag: tuple[str, int] | None, repeated_dir: Path) -> WeightsCheck:
    """Compare the weights at the last step of which both runs have a checkpoint.

    Args:
        recorded_dir: directory of the recorded run; ``None`` if it is not here.
        recorded_tag: digest and step of its last checkpoint, as the store has them.
        repeated_dir: directory of the repetition.
    """
    mine = {info.step: info for info in CheckpointStore(repeated_dir / "checkpoints").all()}
    theirs: dict[int, CheckpointInfo] = {}
    if recorded_dir is not None:
        theirs = {info.step: info for info in CheckpointStore(recorded_dir / "checkpoints").all()}
    steps = mine.keys() & (theirs.keys() | ({recorded_tag[1]} if recorded_tag else set()))
    if not steps:
        return WeightsCheck("weights not compared: no step of which both runs have a checkpoint", is_known=False)
    step = max(steps)
    if step in theirs:
        expected = _digest(theirs[step])
    else:
        assert recorded_tag is not None
        expected = recorded_tag[0]
    found = _digest(mine[step])
    if found == expected:
        return WeightsCheck(f"weights at step {step} bit-equal, sha256 {found[:16]}")
    if step not in theirs:
        text = f"step {step}: the weights have sha256 {found[:16]}, recorded {expected[:16]}"
        return WeightsCheck(f"{text} (the recorded ones are not here)", math.nan, text)
    return _tensor_difference(step, theirs[step].path / WEIGHTS, mine[step].path / WEIGHTS)


def _tensor_difference(step: int, recorded: Path, repeated: Path) -> WeightsCheck:
    from safetensors.torch import load_file

    left, right = load_file(recorded), load_file(repeated)
    first, largest = "", 0.0
    for name in left.keys() | right.keys():
        if name not in left or name not in right or left[name].shape != right[name].shape:
            text = f"step {step}: tensor {name} is not in both, or has another shape"
            return WeightsCheck(text, math.nan, text)
    for name in left:
        gap = (left[name].double() - right[name].double()).abs().max().item() if left[name].numel() else 0.0
        if gap != 0.0:
            first = first or f"step {step}: tensor {name} differs by {gap:.3g}"
            largest = max(largest, gap) if not math.isnan(gap) else math.nan
    text = f"weights at step {step} differ by at most {largest:.3g}"
    return WeightsCheck(text, largest, first or f"step {step}: the files of the weights differ")


def _digest(info: CheckpointInfo) -> str:
    manifest = json.loads((info.path / "MANIFEST.json").read_text(encoding="utf-8"))
    return str(manifest["files"][WEIGHTS]["sha256"])
