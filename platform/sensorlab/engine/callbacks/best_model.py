"""The best model of a training as a folder that stands alone: weights, configuration, and what the network takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sensorlab.engine.checkpoint import CheckpointError, load, read_info
from sensorlab.errors import UserError
from sensorlab.runs.models import DESCRIPTION, Signature, TensorInfo, write_model


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


def export_model(checkpoint: Path, folder: Path, signature: Signature | None = None) -> None:
    """Write the evaluated model of a checkpoint (the average of its weights, if it has one), unless it is there.

    Raises:
        UserError: the checkpoint is missing, torn or altered.
        OSError: the disk is full.
    """
    try:
        info, state = read_info(checkpoint), load(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    average, objective = state["ema"], state["config"]["eval"]["metric"]
    origin = {"config_digest": state["config_digest"], **state["provenance"]}
    description = {
        "summary": {objective: info.metrics.get(objective), "step": info.step, **origin},
        "step": info.step,
        "metrics": info.metrics,
        "weights": "average" if average else "trained",
        "config": state["config"],
        "config_digest": state["config_digest"],
        "provenance": state["provenance"],
        "protocols": state["protocols"],
        "signature": signature.plain() if signature else None,
    }
    description = json.loads(json.dumps(description))
    if not _is_there(folder, description):
        write_model(folder, average["model"] if average else state["model"], description)


def _is_there(folder: Path, description: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {name: found.get(name) for name in description} == dict(description)
