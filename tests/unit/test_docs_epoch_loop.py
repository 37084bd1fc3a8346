"""docs/epoch-loop.md links to files that exist, names code that is in them, and keys that experiments have."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from sensorlab.config_reference import reference
from sensorlab.engine.presets import PRESETS

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "epoch-loop.md"
TEXT = DOC.read_text(encoding="utf-8")

# [`name`] in the text and [`name`]: path at its end.
DEFINED = dict(re.findall(r"^\[`([^`]+)`\]: (\S+)$", TEXT, re.MULTILINE))
USED = set(re.findall(r"\[`([^`]+)`\](?!: )", TEXT))
INLINE = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
SECTIONS = ("train", "data", "optim", "schedule", "warmup", "eval", "checkpoint", "diagnostics", "task")
KEYS = sorted(set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_.]+)[`:]", TEXT)) - {"train.py"})


def names_in(path: Path) -> set[str]:
    """Functions and classes at the top of a module, and ``Class.member`` with those of its bases in the module."""
    names, members = set(), {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            members[node.name] = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    return names | set(members) | {f"{owner}.{name}" for owner, own in members.items() for name in own}


@functools.cache
def known_keys() -> frozenset[str]:
    """Keys, and sections of keys, of an experiment."""
    return frozenset(re.findall(r"^(?:\| |### )`([a-z_.]+)`", reference(), re.MULTILINE))


@pytest.mark.parametrize("name", sorted(DEFINED))
def test_named_code_is_where_the_link_goes(name):
    path = (DOC.parent / DEFINED[name]).resolve()
    assert path.is_file()
    assert path.is_relative_to(ROOT)
    assert name in names_in(path)


def test_every_name_is_a_link_and_every_link_is_used():
    assert set(DEFINED) == USED
    assert len(USED) > 60


@pytest.mark.parametrize("target", sorted(set(INLINE)))
def test_other_links_lead_somewhere(target):
    assert (DOC.parent / target).exists()


@pytest.mark.parametrize("key", KEYS)
def test_keys_exist(key):
    assert key in known_keys()


def test_presets_exist():
    named = set(re.findall(r"preset: (\w+)", TEXT))
    assert len(named) >= 5
    assert named <= set(PRESETS)


def test_the_loop_on_one_screen_names_what_is_in_the_engine():
    block = TEXT.split("## The loop on one screen")[1].split("\n## ")[0]
    names = {name for line in block.splitlines() if line.startswith("    ") for name in re.findall(r"\w+_\w+", line)}
    engine = "".join(path.read_text() for path in (ROOT / "platform/sensorlab/engine").rglob("*.py"))
    assert {"train_step", "set_rates", "to_device", "enter_epoch"} <= names
    assert [name for name in sorted(names) if f"def {name}(" not in engine] == []


def test_every_row_of_a_table_has_all_cells():
    """A missing cell, or a bar inside of one, would shift the columns."""
    tables = re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE)
    assert len(tables) == 7  # the originals, all steps, and one table each
    for table in tables:
        rows = [row.strip().strip("|").split("|") for row in table.splitlines()]
        assert {len(row) for row in rows} == {len(rows[0])}, rows[0]
        assert all(cell.strip() for row in rows for cell in row), "an empty cell says nothing"
    assert len(tables[1].splitlines()) > 40
    assert (
        tables[1]
        .splitlines()[0]
        .startswith("| step | Simple-BEV | CenterFusion | YOLOv5 | mmdetection, mmcv | SiamFC++")
    )
