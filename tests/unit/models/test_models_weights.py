"""Weights from files: formats, nests, renaming, selection, the report, and files that are refused."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.models.weights import load_weights, read_state_dict


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def filled(value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in small_model().state_dict().items()}


def values(model: nn.Module) -> dict[str, float]:
    return {name: tensor.double().mean().item() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("nest", [(), ("model_state_dict",), ("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_checkpoints_load_through_nests_and_prefix(tmp_path: Path, nest: tuple[str, ...], prefix: str) -> None:
    content: dict = {prefix + name: tensor for name, tensor in filled(3).items()}
    for key in reversed(nest):
        content = {key: content, "step": 7}
    torch.save(content, tmp_path / "model.pth")
    model = small_model()
    report = load_weights(model, tmp_path / "model.pth")
    assert set(values(model).values()) == {3.0}
    assert set(report.loaded) == set(model.state_dict())
    assert not report.skipped
    assert not report.missing
    assert not report.unexpected


def test_safetensors_load_and_convert_to_the_models_dtype(tmp_path: Path) -> None:
    save_file({name: tensor.to(torch.float16) for name, tensor in filled(2).items()}, tmp_path / "w.safetensors")
    model = small_model().double()
    load_weights(model, tmp_path / "w.safetensors")
    assert set(values(model).values()) == {2.0}
    assert model[0].weight.dtype == torch.float64
    assert model[1].num_batches_tracked.dtype == torch.int64


def test_rename_include_and_exclude_select_tensors_and_are_reported(tmp_path: Path) -> None:
    content = {name.replace("0.", "stem.", 1): tensor for name, tensor in filled(5).items()}
    content["head.weight"] = torch.zeros(1)
    save_file(content, tmp_path / "w.safetensors")
    model = small_model()
    before = values(model)
    report = load_weights(
        model,
        tmp_path / "w.safetensors",
        rename=[(r"^stem\.", "0.")],
        include=[r"^0\.", r"^1\."],
        exclude=["running_"],
    )
    after = values(model)
    assert report.loaded == ("0.weight", "0.bias", "1.weight", "1.bias", "1.num_batches_tracked")
    assert report.skipped == {
        "1.running_mean": "excluded",
        "1.running_var": "excluded",
        "2.weight": "not included",
        "2.bias": "not included",
    }
    assert report.unexpected == ("head.weight",)
    assert all(after[name] == 5 for name in report.loaded)
    assert all(after[name] == before[name] for name in report.skipped)


def test_report_reads_as_a_table(tmp_path: Path) -> None:
    content = filled(1)
    del content["1.num_batches_tracked"]
    content["2.weight"] = torch.zeros(9, 4)
    content["extra"] = torch.zeros(1)
    save_file(content, tmp_path / "w.safetensors")
    report = load_weights(small_model(), tmp_path / "w.safetensors", on_shape_mismatch="skip", exclude=["2.bias"])
    assert str(report).splitlines() == [
        f"weights from {tmp_path / 'w.safetensors'}: 6 of the model's 9 tensors loaded",
        "  loaded                      6  0 (2), 1 (4)",
        "  skipped: excluded           1  2",
        "  skipped: shape differs      1  2",
        "  missing                     1  1",
        "  unexpected                  1  extra",
    ]


def test_shape_mismatch_is_an_error_that_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    content = filled(1)
    content["2.weight"] = torch.zeros(9, 4)
    save_file(content, tmp_path / "w.safetensors")
    model = small_model()
    before = values(model)
    with pytest.raises(UserError, match=r"2\.weight: file \(9, 4\), model \(2, 4\)"):
        load_weights(model, tmp_path / "w.safetensors")
    assert values(model) == before


class Detector(nn.Module):
    """Layers of every kind that has a weight of two dimensions or more; ``extra`` input channels."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.head = nn.Conv2d(4 + extra, 2, 3)
        self.line = nn.Conv1d(4 + extra, 2, 3, bias=False)
        self.dense = nn.Linear(4 + extra, 2)
        self.up = nn.ConvTranspose2d(2, 4 + extra, 2, bias=False)
        self.square_up = nn.ConvTranspose2d(6, 4 + extra, 2, bias=False)
        self.grouped = nn.Conv2d(2 * (4 + extra), 2, 1, groups=2, bias=False)
        self.table = nn.Embedding(3, 4 + extra)
        self.norm = nn.LayerNorm((2, 4 + extra))
        self.classes = nn.Conv2d(4, 5 + extra, 1)


def saved(model: nn.Module, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(("file_extra", "model_extra", "shared"), [(0, 3, 4), (3, 0, 4), (1, 2, 5)])
def test_inflation_takes_the_input_channels_that_both_have(
    tmp_path: Path, file_extra: int, model_extra: int, shared: int
) -> None:
    source, model = Detector(file_extra), Detector(model_extra)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = saved(source, tmp_path / "w.safetensors")
    report = load_weights(model, path, on_shape_mismatch="inflate_input")
    which = f"{4 + file_extra} -> {4 + model_extra} input channels"
    assert report.partial == {"head.weight": which, "line.weight": which, "dense.weight": which}
    for name, value in model.state_dict().items():
        read = source.state_dict()[name]
        if name in report.partial:
            assert torch.equal(value[:, :shared], read[:, :shared]), name
            assert torch.equal(value[:, shared:], before[name][:, shared:]), name
        elif name in report.skipped:
            assert torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, read), name
    others = {"up.weight", "square_up.weight", "grouped.weight", "table.weight", "norm.weight", "norm.bias"}
    assert set(report.skipped) == others | {"classes.weight", "classes.bias"}
    assert set(report.loaded) == {"head.bias", "dense.bias"}


def test_an_inflated_network_computes_the_same_while_its_new_inputs_are_zero(tmp_path: Path) -> None:
    """What the warm start is for: radar channels are appended to a camera network."""
    source, model = nn.Conv2d(4, 2, 3), nn.Conv2d(7, 2, 3)
    load_weights(model, saved(source, tmp_path / "w.safetensors"), on_shape_mismatch="inflate_input")
    x = torch.randn(2, 4, 8, 8)
    assert torch.allclose(model(torch.cat([x, torch.zeros(2, 3, 8, 8)], 1)), source(x), atol=1e-6)


def test_other_policies_do_not_inflate(tmp_path: Path) -> None:
    path = saved(nn.Conv2d(4, 2, 3), tmp_path / "w.safetensors")
    model = nn.Conv2d(7, 2, 3)
    before = model.weight.clone()
    with pytest.raises(UserError, match=r"weight: file \(2, 4, 3, 3\), model \(2, 7, 3, 3\).*inflate_input"):
        load_weights(model, path)
    assert load_weights(model, path, on_shape_mismatch="skip").skipped == {"weight": "shape differs"}
    assert torch.equal(model.weight, before)


def test_the_listing_names_every_tensor_once(tmp_path: Path) -> None:
    content = Detector().state_dict() | {"extra": torch.zeros(1)}
    del content["norm.bias"]
    save_file(content, tmp_path / "w.safetensors")
    report = load_weights(Detector(3), tmp_path / "w.safetensors", on_shape_mismatch="inflate_input", exclude=["^up"])
    lines = report.listing().splitlines()
    assert lines[: len(str(report).splitlines())] == str(report).splitlines()
    assert "5 of the model's 13 tensors loaded, 3 of them in part" in lines[0]
    fates = dict(line.split(": ", 1) for line in lines[lines.index("") + 1 :])
    assert fates.keys() == Detector(3).state_dict().keys() | {"extra"}
    assert fates["head.weight"] == "partly loaded: 4 -> 7 input channels"
    assert fates["head.bias"] == "loaded"
    assert fates["up.weight"] == "skipped: excluded"
    assert fates["classes.bias"] == "skipped: shape differs"
    assert fates["norm.bias"] == "missing"
    assert fates["extra"] == "unexpected"


class TouchesAFile:
    """Unpickled without care, this creates a file: a harmless stand-in for code in a checkpoint."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"state_dict": filled(1), "model": TouchesAFile(str(marker))}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: refused.*safetensors"):
        load_weights(small_model(), tmp_path / "bad.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(TouchesAFile(str(marker)), protocol=2))
    with pytest.raises(UserError, match=r"raw\.pth: refused"):
        load_weights(small_model(), tmp_path / "raw.pth")
    assert not marker.exists()


def test_missing_broken_and_empty_files_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "text.safetensors").write_text("not a safetensors file")
    with pytest.raises(UserError, match=r"text\.safetensors: cannot be read"):
        read_state_dict(tmp_path / "text.safetensors")
    torch.save(filled(1), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for size in (0, 10, len(data) // 2):
        (tmp_path / "cut.pth").write_bytes(data[:size])
        with pytest.raises(UserError, match=r"cut\.pth"):
            read_state_dict(tmp_path / "cut.pth")
    torch.save({"step": 3}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "empty.pth")


def test_nothing_matched_names_both_sides(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"no tensor can be loaded.*a\.weight.*0\.weight"):
        load_weights(small_model(), tmp_path / "other.safetensors")


def test_bad_patterns_and_colliding_names_are_clear_errors(tmp_path: Path) -> None:
    save_file(filled(1), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"invalid regular expression '\('"):
        load_weights(small_model(), tmp_path / "w.safetensors", include=["("])
    with pytest.raises(UserError, match="invalid replacement"):
        load_weights(small_model(), tmp_path / "w.safetensors", rename=[("^0", r"\3")])
    with pytest.raises(UserError, match="two tensors the name"):
        load_weights(small_model(), tmp_path / "w.safetensors", rename=[("^[02]", "0")])
