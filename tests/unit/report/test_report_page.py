"""Tests of whole pages: every kind of sweep gives a sound one."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_sweeps import PROTOCOL, SPACE, showcase, trial_entry, write_sweep, write_trial

from sensorlab.config import parse_yaml
from sensorlab.report.gather import gather
from sensorlab.report.page import render
from sensorlab.report.summary import yaml_text

_VOID = {"meta", "img", "br", "hr", "col"}
HOLD = """
import sys, time
from pathlib import Path
from sensorlab.cluster.lease import DRIVER, hold
with hold(Path(sys.argv[1]), DRIVER):
    print("held", flush=True)
    time.sleep(60)
"""
HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Checker(HTMLParser):
    """Elements are closed in order; collects tags, attributes and the text of every element by tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def checked(page: str) -> Checker:
    """The page parsed; it is well-formed, loads nothing, and runs no script but its own."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(re.findall(r"<script", page)) == 1
    ids = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in checker.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), attributes
        if tag == "a":
            assert (attributes["href"] or "")[1:] in ids
    assert "@import" not in page
    assert not re.search(r"url\((?!#plot)", page)
    assert "nan" not in [attributes.get(name) for _, attributes in checker.tags for name in ("cx", "cy", "x", "y", "d")]
    return checker


def page_of(directory: Path, **options: Any) -> str:
    return render(gather(directory, use_tracking=False, **options))


def sections(checker: Checker) -> set[str]:
    return {str(attributes["id"]) for tag, attributes in checker.tags if tag == "section"}


def plain(page: str) -> str:
    """The text of a page."""
    return " ".join(html.unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def test_a_rich_sweep_has_every_section(tmp_path):
    page = page_of(showcase(tmp_path / "show"))
    checker = checked(page)
    assert sections(checker) == {
        *("decision", "ranking", "other-protocols", "curves", "cost", "space", "pictures", "differences", "times"),
        *("failures", "protocols", "about"),
    }
    text = plain(page)
    assert "The best two are not distinguishable" in text
    assert "CUDA out of memory <b>now</b>" in text  # the traceback, as text
    assert "val/iou was never a finite number in 2 epochs" in text
    assert "24 → 10" in text  # the first rung
    images = [attributes for tag, attributes in checker.tags if tag == "img"]
    assert len(images) == 6  # best, median, worst; two samples each
    assert {(attributes["alt"] or "").partition(":")[0] for attributes in images} == {"best", "median", "worst"}
    assert page.count('class="pc ') == 24


def test_two_protocols_are_two_tables_and_it_says_what_differs(tmp_path):
    entries = [
        trial_entry(tmp_path, 0),
        trial_entry(tmp_path, 1),
        trial_entry(tmp_path, 2, objective=0.9, protocol="p2"),
    ]
    for entry, threshold in zip(entries, (0.5, 0.5, 0.3), strict=True):
        write_trial(entry, [0.1], protocol={**PROTOCOL, "threshold": threshold})
    page = page_of(write_sweep(tmp_path, entries))
    checker = checked(page)
    tables = [attributes for tag, attributes in checker.tags if "ranking" in (attributes.get("class") or "").split()]
    assert len(tables) == 2
    first, second = page.split('id="other-protocols"')[0], page.split('id="other-protocols"')[1].split("</section>")[0]
    assert 'data-config="#2"' not in first
    assert 'data-config="#2"' in second
    assert "threshold 0.5 0.3" in plain(second)
    assert "numbers do not compare with these" in plain(page)
    assert "best val/iou (max) 0.2 (n = 1)" in plain(page)


@pytest.mark.parametrize("ledger", [None, []])
def test_no_trials(tmp_path, ledger):
    page = page_of(write_sweep(tmp_path / "empty", ledger, num_trials=4))
    assert sections(checked(page)) == {"decision", "about"}
    assert "nothing to rank" in page
    assert "KILLED" in page  # no driver works on it, and no trial has started


def test_one_trial(tmp_path):
    entry = trial_entry(tmp_path, 0)
    write_trial(entry, [0.1])
    page = page_of(write_sweep(tmp_path, [entry]))
    assert {"ranking", "curves", "cost", "times"} <= sections(checked(page))
    assert "nothing to compare it with" in page
    assert "best: no pictures" in page or "no pictures were found" in page


def test_all_failed(tmp_path):
    entries = [trial_entry(tmp_path, n, state="failed", objective=None, epoch=0, reason="no GPU") for n in range(3)]
    page = page_of(write_sweep(tmp_path, entries))
    assert sections(checked(page)) == {"decision", "times", "failures", "about"}
    assert plain(page).count("failed: no GPU") == 3


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_objectives_that_are_no_numbers(tmp_path, value):
    entries = [trial_entry(tmp_path, 0, objective=value, rungs={"1": value}), trial_entry(tmp_path, 1)]
    write_trial(entries[0], [math.nan, math.nan])
    page = page_of(write_sweep(tmp_path, entries))
    assert "never a finite number" in plain(page)
    assert "failures" in sections(checked(page))


def test_hostile_names_are_text(tmp_path):
    values = {f"task.{HOSTILE}": HOSTILE, "optim.lr": 0.1}
    entries = [
        trial_entry(tmp_path, 0, values=values, metrics={f"val/{HOSTILE}": 1.0}, protocol=HOSTILE),
        trial_entry(tmp_path, 1, values={**values, "optim.lr": 0.2}, protocol=HOSTILE),
        trial_entry(tmp_path, 2, state="failed", reason=HOSTILE, values=values),
    ]
    write_trial(entries[0], [0.1], panels=1, protocol={HOSTILE: HOSTILE})
    write_trial(entries[2], [], error=HOSTILE)
    space = {f"task.{HOSTILE}": {"choice": [HOSTILE, "b"]}, **SPACE}
    page = page_of(write_sweep(tmp_path, entries, space=space, algorithm=HOSTILE))
    checked(page)
    assert HOSTILE not in page
    assert HOSTILE in plain(page) or "alert(1)" in plain(page)


def test_two_hundred_trials(tmp_path):
    page = page_of(showcase(tmp_path / "many", configurations=200, seeds=1))
    checked(page)
    assert page.count('class="pc ') == 200
    assert len(page) < 2 * 2**20
    assert "The first 40 of 203 trials are drawn" in plain(page)


def test_missing_pictures_say_so(tmp_path):
    entries = [trial_entry(tmp_path, number) for number in range(3)]
    for number, entry in enumerate(entries):
        write_trial(entry, [0.1], panels=2 if number == 2 else 1)
    broken = Path(entries[0]["run_dir"]) / "panels" / "step-00000010-0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    page = page_of(write_sweep(tmp_path, entries))
    checker = checked(page)
    assert sum(tag == "img" for tag, _ in checker.tags) == 3
    assert "worst: no panel_0 of trial #0" in plain(page)
    assert "median: no panel_1 of trial #1" in plain(page)


@pytest.mark.parametrize(("state", "banner"), [("running", "KILLED"), ("interrupted", "INTERRUPTED"), ("done", None)])
def test_banner(tmp_path, state, banner):
    entries = [trial_entry(tmp_path, 0), trial_entry(tmp_path, 1, state=state)]
    page = page_of(write_sweep(tmp_path, entries))
    shown = re.search(r'<p class="banner" role="status"><strong>(\w+)</strong>', page)
    assert (shown[1] if shown else None) == banner
    if banner:
        assert f"--resume {tmp_path}" in plain(page)
        assert "1 of 2 trials have ended, 1 interrupted (#1)." in plain(page)


def test_a_trial_without_a_driver_is_not_running(tmp_path):
    """The lease says which process the driver was: one that is gone is known to be gone at once."""
    entries = [trial_entry(tmp_path, 0), trial_entry(tmp_path, 1, state="running", started=time.time())]
    write_sweep(tmp_path, entries, num_trials=5)
    driver = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    with driver.stdout:
        assert driver.stdout.readline() == b"held\n"
        alive = plain(page_of(tmp_path))
        driver.kill()
        driver.wait()
    dead = plain(page_of(tmp_path))
    assert "RUNNING" in alive
    assert "1 of 5 trials have ended, 1 running (#1), 3 not started." in alive
    assert "KILLED" in dead
    assert "1 of 5 trials have ended, 1 interrupted (#1), 3 not started." in dead
    assert "#1 running" in alive  # the table of times
    assert "#1 interrupted" in dead
    assert "running" not in dead


def test_keys_that_differ_though_nobody_searched_them(tmp_path):
    entries = [trial_entry(tmp_path, number) for number in range(2)]
    for entry in entries:
        write_trial(entry, [0.1])
    path = Path(entries[1]["run_dir"]) / "checkpoints" / "step-00000010" / "state.json"
    state = json.loads(path.read_text())
    state["config"]["train"]["clip"] = 5.0
    state["provenance"]["code"] = "another"
    path.write_text(json.dumps(state))
    page = plain(page_of(write_sweep(tmp_path, entries)))
    assert "Not searched, but different too: provenance.code, train.clip." in page


@pytest.mark.parametrize(
    "value", ["res18", "true", "1e-3", "", "a: b", "- x", "ä", [1, 2], None, True, 1e-5, {"a": [1]}]
)
def test_overrides_read_back_as_they_were(value):
    assert parse_yaml(yaml_text(value)) == value
    assert yaml_text("res18") == "res18"


def test_a_best_that_was_stopped_early_is_said_to_be(tmp_path):
    entries = [
        trial_entry(tmp_path, 0, objective=0.5, epoch=1, state="stopped"),
        trial_entry(tmp_path, 1, objective=0.4, epoch=4),
        trial_entry(tmp_path, 2, objective=0.3, epoch=1, state="stopped"),
    ]
    page = plain(page_of(write_sweep(tmp_path, entries)))
    assert "The best configuration trained for 1 epoch only; #1 trained longer, up to 4." in page
    assert page.count("trained longer") == 2  # the row of #1 says so too
    assert "trained shorter" not in page
    assert "#2, the next that trained as long" not in page  # nothing was repeated, so nothing was tested
    entries = [{**entry, "objective": entry["objective"] / entry["epoch"]} for entry in entries]
    page = plain(page_of(write_sweep(tmp_path, [{**entries[1], "objective": 0.9}, entries[0]])))
    assert "trained shorter" in page
    assert "trained longer" not in page


def test_the_second_of_the_ranking_need_not_be_the_rival(tmp_path):
    values = [{"optim.lr": lr, "seed": seed} for lr in (0.1, 0.2, 0.3) for seed in (0, 1)]
    objectives, epochs = (0.5, 0.52, 0.4, 0.42, 0.3, 0.32), (1, 1, 4, 4, 1, 1)
    entries = [
        trial_entry(tmp_path, number, values=values[number], objective=objectives[number], epoch=epochs[number])
        for number in range(6)
    ]
    for entry in entries:
        write_trial(entry, [entry["objective"]])
    page = plain(page_of(write_sweep(tmp_path, entries)))
    assert "The best and #4, the next that trained as long, are" in page


def test_keys_that_all_trials_share_are_named_once(tmp_path):
    entries = [trial_entry(tmp_path, n, values={"optim.lr": 0.1 * (n + 1), "task.depth": 18}) for n in range(3)]
    for entry in entries:
        write_trial(entry, [0.1])
    page = page_of(write_sweep(tmp_path, entries))
    assert "The same in all trials: depth = 18." in plain(page)
    header = page.partition('aria-label="Ranking"')[2].partition("</thead>")[0]
    assert ">lr<" in header
    assert ">depth<" not in header


def test_the_order_of_samples_follows_the_seed_and_is_no_difference(tmp_path):
    entries = [trial_entry(tmp_path, n, values={"optim.lr": 0.1, "seed": n}) for n in range(2)]
    entries.append(trial_entry(tmp_path, 2, values={"optim.lr": 0.2, "seed": 0}))
    for entry in entries:
        write_trial(entry, [0.1])
        path = Path(entry["run_dir"]) / "checkpoints" / "step-00000010" / "state.json"
        state = json.loads(path.read_text())
        state["provenance"]["order"] = f"order of seed {entry['values']['seed']}"
        path.write_text(json.dumps(state))
    assert "provenance.order" not in page_of(write_sweep(tmp_path, entries))


def test_another_repeat_lends_its_pictures(tmp_path):
    entries = [trial_entry(tmp_path, n, values={"optim.lr": 0.1, "seed": n}, objective=0.1 + n / 100) for n in range(3)]
    for entry in entries:
        write_trial(entry, [entry["objective"]], panels=int(entry["number"] == 2))
    (exhibit,) = {
        exhibit.trial.number for exhibit in gather(write_sweep(tmp_path, entries), use_tracking=False).exhibits
    }
    assert exhibit == 2  # although #1 is the nearest to the mean


def test_min_mode(tmp_path):
    entries = [trial_entry(tmp_path, number) for number in range(3)]
    for entry in entries:
        write_trial(entry, [entry["objective"]])
    page = plain(page_of(write_sweep(tmp_path, entries, mode="min")))
    assert "best val/iou (min) 0.1 (n = 1)" in page
    assert "configuration #0" in page
