"""docs/resume.md lists what a resumed run may change, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sensorlab.config import as_dict, flatten
from sensorlab.errors import UserError
from sensorlab.experiment import RESUME_MAY_CHANGE, experiment_from, refuse_changed

DOC = Path(__file__).parents[2] / "docs" / "resume.md"
TEXT = DOC.read_text(encoding="utf-8")
MAY_CHANGE = TEXT.partition("## Keys that may change")[2].partition("\n## ")[0]
TREE = {
    "name": "one",
    "task": {"name": "bev_segmentation"},
    "data": {"path": "here"},
    "train": {"duration": "3 epochs"},
}
OVERRIDES = {
    "name": {"name": "other"},
    "output_dir": {"output_dir": "elsewhere"},
    "data.path": {"data": {"path": "there"}},
    "train.nonfinite_budget": {"train": {"duration": "3 epochs", "nonfinite_budget": 99}},
    "train.extend": {"train": {"duration": "3 epochs", "extend": {"duration": "1 epoch"}}},
    "train.until": {"train": {"duration": "3 epochs", "until": "2 epochs"}},
    "train.fork": {"train": {"duration": "3 epochs", "fork": {"checkpoint": "elsewhere"}}},
    "checkpoint": {"checkpoint": {"keep_latest": 7}},
    "resources": {"resources": {"num_workers": 2}},
}


def test_the_table_is_the_list_of_the_code():
    assert tuple(re.findall(r"^\| `([a-z_.]+)` \|", MAY_CHANGE, re.MULTILINE)) == RESUME_MAY_CHANGE


def test_every_key_is_one_of_an_experiment():
    keys = flatten(as_dict(experiment_from(TREE)))
    for allowed in RESUME_MAY_CHANGE:
        assert any(key == allowed or key.startswith(f"{allowed}.") for key in keys), allowed


@pytest.mark.parametrize("key", OVERRIDES)
def test_what_is_listed_may_change(key):
    assert key in RESUME_MAY_CHANGE
    saved, present = experiment_from(TREE), experiment_from(TREE | OVERRIDES[key])
    assert saved != present
    refuse_changed(as_dict(saved), present)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"data": {"path": "here", "global_batch": 4}}, "data.global_batch: 8 -> 4"),
        ({"train": {"duration": "4 epochs"}}, "train.duration: '3 epochs' -> '4 epochs'"),
        ({"train": {"duration": "3 epochs", "nonfinite": "skip"}}, "train.nonfinite: 'stop' -> 'skip'"),
        ({"eval": {"every": "2 epochs"}}, "eval.every: '1 epoch' -> '2 epochs'"),
    ],
)
def test_what_is_not_listed_may_not(section, message):
    with pytest.raises(UserError, match=message):
        refuse_changed(as_dict(experiment_from(TREE)), experiment_from(TREE | section))


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert targets
    assert all((DOC.parent / target).exists() for target in targets)
