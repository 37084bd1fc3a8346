"""docs/configuration.md is what the classes say."""

from __future__ import annotations

from pathlib import Path

from sensorlab.config_reference import reference

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_is_up_to_date():
    assert (DOCS / "configuration.md").read_text() == reference(), "run: sensorlab config > docs/configuration.md"


def test_every_key_of_a_component_is_there_with_its_meaning():
    text = reference()
    assert "| `data.global_batch` | `int` | `8` | samples per forward pass, over all workers |" in text
    assert "`task.image.size`" in text
    assert "`sweep.num_trials`" in text
