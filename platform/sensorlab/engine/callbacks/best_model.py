"""The best model of a training as a folder that stands alone: weights, configuration, and what the network takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sensorlab.config import as_dict
from sensorlab.engine.checkpoint import CheckpointInfo
from sensorlab.engine.validate import weights_of
from sensorlab.runs.models import DESCRIPTION, Signature, TensorInfo, write_model

if TYPE_CHECKING:
    from sensorlab.engine.training import Training


class SignatureProbe:
    """Looks at what the evaluated network takes and gives in the first call of an evaluation, and at no other call.

    Nothing of it is in a training step: the hook is there from the begin of an evaluation to its first batch.
    """

    def __init__(self) -> None:
        self.found: Signature | None = None

    def attach(self, model: nn.Module) -> None:
        """Look at the next call of ``model``."""
        parameters = list(inspect.signature(model.forward).parameters)

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: Any) -> None:
            handle.remove()
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            self.found = Signature(tuple(_tensors(given)), tuple(_tensors(outputs, "output")))

        handle = model.register_forward_hook(look, with_kwargs=True)


def _tensors(value: Any, name: str = "") -> Iterator[TensorInfo]:
    """The tensors in nested mappings and sequences, by dotted name."""
    if isinstance(value, Tensor):
        shape = (-1, *value.shape[1:]) if value.ndim else ()
        yield TensorInfo(name, str(value.dtype).removeprefix("torch."), shape)
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from _tensors(item, f"{name}.{key}" if name and name != "output" else str(key))


def export_best_model(training: Training, best: CheckpointInfo, signature: Signature | None) -> Path:
    """Write ``run_dir/best_model`` from a checkpoint, unless it is there; returns the folder.

    Raises:
        UserError: the checkpoint is torn or altered.
        OSError: the disk is full.
    """
    folder = training.run_dir / "best_model"
    objective = training.config.eval.metric
    description = {
        "summary": {
            objective: best.metrics.get(objective),
            "step": best.step,
            "configuration": training.config_digest,
            **{key: value for key, value in training.provenance.items() if key in ("dataset", "code")},
        },
        "step": best.step,
        "metrics": best.metrics,
        "weights": "average" if training.ema else "trained",
        "config": as_dict(training.config),
        "config_digest": training.config_digest,
        "provenance": training.provenance,
        "protocols": training.protocols,
        "signature": signature.plain() if signature else None,
    }
    description = json.loads(json.dumps(description))
    if not _is_there(folder, description):
        write_model(folder, weights_of(best.path).tensors, description)
    return folder


def _is_there(folder: Path, description: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {name: found.get(name) for name in description} == dict(description)
