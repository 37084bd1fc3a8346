"""Import of weights from files: pretrained backbones, published checkpoints, earlier runs.

Names may differ between file and model, and layers may have been added or removed; what happened to every tensor is
reported. Files are ``.safetensors``, or PyTorch checkpoints that hold tensors and plain containers only: pickled
objects can run code when they are read, so they are refused.
"""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sensorlab.errors import UserError

# Keys under which checkpoints nest their state dict, and the prefix that (Distributed)DataParallel leaves on names.
NESTS = ("model_state_dict", "state_dict", "model")
PARALLEL_PREFIX = "module."


# What to do with a tensor that has another shape in the file than in the model.
ShapePolicy = Literal["error", "skip", "inflate_input"]


@dataclass(frozen=True)
class LoadReport:
    """What happened to each tensor of the model and of the file. Names are the model's where it has them."""

    path: str
    loaded: tuple[str, ...]
    partial: dict[str, str]  # some input channels loaded: name -> which
    skipped: dict[str, str]  # in both, not loaded: name -> reason
    missing: tuple[str, ...]  # in the model, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the model

    def fates(self) -> dict[str, str]:
        """What happened to each tensor by name, those of the model first: ``loaded``, ``skipped: excluded``, ..."""
        return {
            **dict.fromkeys(self.loaded, "loaded"),
            **{name: f"partly loaded: {which}" for name, which in self.partial.items()},
            **{name: f"skipped: {reason}" for name, reason in self.skipped.items()},
            **dict.fromkeys(self.missing, "missing"),
            **dict.fromkeys(self.unexpected, "unexpected"),
        }

    def __str__(self) -> str:
        """A summary: names are grouped by what happened and by where they are in the model."""
        total = len(self.loaded) + len(self.partial) + len(self.skipped) + len(self.missing)
        partly = f", {len(self.partial)} of them in part" if self.partial else ""
        count = len(self.loaded) + len(self.partial)
        lines = [f"weights from {self.path}: {count} of the model's {total} tensors loaded{partly}"]
        names_of: dict[str, list[str]] = {}
        for name, fate in self.fates().items():
            names_of.setdefault(fate, []).append(name)
        # Reasons in alphabetical order, so that two reports can be compared.
        order = {"loaded": 0, "partly loaded": 1, "skipped": 2, "missing": 3, "unexpected": 4}
        rows = sorted(names_of.items(), key=lambda row: (order[row[0].partition(":")[0]], row[0]))
        width = max(len(fate) for fate, _ in rows)
        lines += [f"  {fate:<{width}}  {len(names):>5}  {_summarise(names)}" for fate, names in rows]
        return "\n".join(lines)

    def listing(self) -> str:
        """The summary, then one line for each tensor."""
        return "\n".join([str(self), "", *(f"{name}: {fate}" for name, fate in self.fates().items())])


def load_weights(
    model: nn.Module,
    path: str | Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
    on_shape_mismatch: ShapePolicy = "error",
) -> LoadReport:
    """Copy the tensors of a file into a model, by name.

    All checks come before the first copy: after an error the model is as it was.

    Args:
        model: changed in place; values are converted to the dtype and device of its tensors.
        path: ``.safetensors`` file or PyTorch checkpoint (any other suffix).
        include: regular expressions; if given, only names in which one of them is found are loaded.
        exclude: regular expressions; names in which one of them is found are skipped. Wins over ``include``.
        rename: (regular expression, replacement) pairs, applied in turn to each name of the file. ``include`` and
            ``exclude`` look at the result.
        on_shape_mismatch: "skip" leaves tensors of another shape at their present values. "inflate_input"
            (CenterFusion's warm start) takes the input channels that file and model share, the first ones, for weights
            of convolutions and linear layers that differ in nothing else; further ones of the model keep their
            present values, further ones of the file are dropped. It skips what differs otherwise.

    Raises:
        UserError: the file does not exist, cannot be read or needs code to be read; a pattern is invalid; two names
            become one; shapes differ (with "error"); nothing is left to load.
    """
    path = Path(path)
    source = _rename_keys(read_state_dict(path), rename, path)
    target = model.state_dict()
    skipped = _unselected(target.keys() & source.keys(), include, exclude)
    chosen = [name for name in target if name in source and name not in skipped]
    loaded = [name for name in chosen if source[name].shape == target[name].shape]
    mismatched = [name for name in chosen if source[name].shape != target[name].shape]
    if mismatched and on_shape_mismatch == "error":
        raise UserError(_shapes_differ(path, mismatched, source, target))
    partial: dict[str, str] = {}
    for name in mismatched:
        if on_shape_mismatch == "inflate_input" and _differs_in_input_channels(
            model, name, source[name], target[name].shape
        ):
            partial[name] = f"{source[name].shape[1]} -> {target[name].shape[1]} input channels"
        else:
            skipped[name] = "shape differs"
    if not loaded and not partial:
        raise UserError(
            f"{path}: no tensor can be loaded. The file (after renaming) has {_examples(source)}; "
            f"the model has {_examples(target)}. Check the file, rename, include and exclude."
        )
    with torch.no_grad():
        for name in loaded:
            target[name].copy_(source[name])
        for name in partial:
            shared = min(source[name].shape[1], target[name].shape[1])
            target[name][:, :shared].copy_(source[name][:, :shared])
    return LoadReport(
        str(path),
        tuple(loaded),
        partial,
        {name: skipped[name] for name in target if name in skipped},
        missing=tuple(name for name in target if name not in source),
        unexpected=tuple(name for name in source if name not in target),
    )


def tensor_differences(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``source`` from being the weights of ``target``, a line for each name, sorted; empty if nothing."""
    differing = [
        f"{name}: weights {tuple(source[name].shape)}, model {tuple(target[name].shape)}"
        for name in target.keys() & source.keys()
        if source[name].shape != target[name].shape
    ]
    differing += [f"{name}: only in the model" for name in target.keys() - source.keys()]
    differing += [f"{name}: only in the weights" for name in source.keys() - target.keys()]
    return sorted(differing)


def _unselected(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> dict[str, str]:
    """Those of ``names`` that are not to be loaded, with the reason."""
    include_patterns, exclude_patterns = _compile(include), _compile(exclude)
    skipped = {}
    for name in names:
        if any(pattern.search(name) for pattern in exclude_patterns):
            skipped[name] = "excluded"
        elif include_patterns and not any(pattern.search(name) for pattern in include_patterns):
            skipped[name] = "not included"
    return skipped


def _shapes_differ(path: Path, names: Sequence[str], source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> str:
    examples = [f"{name}: file {tuple(source[name].shape)}, model {tuple(target[name].shape)}" for name in names[:3]]
    return (
        f"{path}: shapes of {len(names)} tensors differ from the model's: {'; '.join(examples)}"
        f"{'; ...' if len(names) > 3 else ''}. Exclude them, or set on_shape_mismatch to skip or inflate_input."
    )


def _differs_in_input_channels(model: nn.Module, name: str, value: Tensor, shape: torch.Size) -> bool:
    """Whether ``value`` is the weight (out, in, ...) of a layer like that of ``name``, but for its input channels.

    The layer must declare its inputs and have a weight for each: grouped convolutions have not. Transposed ones keep
    their inputs in dimension 0.
    """
    parent, _, last = name.rpartition(".")
    layer = model.get_submodule(parent)
    declared = getattr(layer, "in_channels", getattr(layer, "in_features", None))
    if last != "weight" or isinstance(layer, _ConvTransposeNd) or value.dim() < 2 or declared != shape[1]:
        return False
    return value.shape[0] == shape[0] and value.shape[2:] == shape[2:]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, without the nests and prefixes that trainers put around them.

    Raises:
        UserError: missing file, unreadable file, a file that needs code to be read, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    while isinstance(content, Mapping):
        nest = next((key for key in NESTS if isinstance(content.get(key), Mapping)), None)
        if nest is None:
            break
        content = content[nest]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"{path}: holds no state dict (a mapping from names to tensors), at the top or under {', '.join(NESTS)}"
        )
    if all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(PARALLEL_PREFIX): value for name, value in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> Any:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Raised both for objects that are refused and for files that are no checkpoint at all.
        raise UserError(
            f"{path}: refused: not a checkpoint of plain tensors. Either it is no PyTorch checkpoint or it holds "
            "pickled objects, which can run code when they are read. Save its state dict as .safetensors instead."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as a PyTorch checkpoint ({error})") from error


def _rename_keys(source: Mapping[str, Tensor], rename: Sequence[tuple[str, str]], path: Path) -> dict[str, Tensor]:
    rules = list(zip(_compile(pattern for pattern, _ in rename), (text for _, text in rename), strict=True))
    renamed: dict[str, Tensor] = {}
    for name, tensor in source.items():
        new_name = name
        for pattern, replacement in rules:
            try:
                new_name = pattern.sub(replacement, new_name)
            except (re.error, IndexError) as error:
                raise UserError(f"rename: invalid replacement {replacement!r} ({error})") from error
        if new_name in renamed:
            raise UserError(f"{path}: renaming gives two tensors the name {new_name!r}; make the patterns narrower")
        renamed[new_name] = tensor
    return renamed


def _compile(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise UserError(f"invalid regular expression {pattern!r} for tensor names ({error})") from error
    return compiled


def _examples(names: Mapping[str, Tensor]) -> str:
    return f"{len(names)} tensors such as {', '.join(list(names)[:2])}"


def _summarise(names: Sequence[str]) -> str:
    """Names grouped by their first two components: ``encoder.backbone (267), encoder.layer3 (114)``."""
    groups = Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)
    return ", ".join(f"{group} ({count})" if count > 1 else group for group, count in groups.items())
