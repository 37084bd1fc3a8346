"""docs/mmdet-hooks.md links to files that exist, names code that is in them, and keys that experiments have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sensorlab.engine.presets import PRESETS
from unit.test_docs_epoch_loop import known_keys, names_in

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "mmdet-hooks.md"
TEXT = DOC.read_text(encoding="utf-8")

# [`name`] in the text and [`name`]: path at its end.
DEFINED = dict(re.findall(r"^\[`([^`]+)`\]: (\S+)$", TEXT, re.MULTILINE))
USED = set(re.findall(r"\[`([^`]+)`\](?!: )", TEXT))
INLINE = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
KEYS = sorted(set(re.findall(r"`((?:train|warmup|data|eval|checkpoint)\.[a-z_.]+)`", TEXT)))


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_named_code_is_where_the_link_goes(name):
    path = (DOC.parent / DEFINED[name]).resolve()
    assert path.is_relative_to(ROOT)
    assert name in names_in(path)


def test_every_name_is_a_link_and_every_link_is_used():
    assert set(DEFINED) == USED
    assert len(USED) > 70


@pytest.mark.parametrize("target", sorted(set(INLINE)))
def test_other_links_lead_somewhere(target):
    assert (DOC.parent / target).exists()


def test_keys_exist():
    assert len(KEYS) >= 4
    assert [key for key in KEYS if key not in known_keys()] == []


def test_presets_exist():
    named = set(re.findall(r"mmdet\d_\w+", TEXT))
    assert len(named) == 3
    assert named <= set(PRESETS)


def test_every_row_of_a_table_has_all_cells():
    """A missing cell, or a bar inside of one, would shift the columns."""
    tables = re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        rows = [row.strip().strip("|").split("|") for row in table.splitlines()]
        assert {len(row) for row in rows} == {3}, rows[0]
        assert all(cell.strip() for row in rows for cell in row)
