"""Populations and levels of fidelity on the page."""

from __future__ import annotations

import html
import itertools
import json
import re
from pathlib import Path

import pytest
from report_sweeps import levels, population, showcase

from sensorlab.report.gather import Report, gather
from sensorlab.report.lineage import lineage_chart
from sensorlab.report.page import render


def plain(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def section(page: str, anchor: str) -> str:
    return page.partition(f'<section id="{anchor}"')[2].partition("</section>")[0]


@pytest.fixture(scope="module")
def bred(tmp_path_factory) -> Report:
    return gather(population(tmp_path_factory.mktemp("sweep") / "bred"), use_tracking=False)


def test_the_way_of_the_winner_back_to_its_first_generation(bred):
    """4 members, the lowest rate wins: #3 (member 3), taken over by member 0, by member 1 which had failed, then 2."""
    found = bred.population
    assert found is not None
    assert [trial.number for trial in found.path()] == [3, 4, 9, 14]
    assert [(found.generation(trial), found.member(trial)) for trial in found.path()] == [
        (0, 3),
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert [found.is_exploit(trial) for trial in found.path()] == [False, True, True, True]
    rates = [trial.values["optim.lr"] for trial in found.path()]
    assert [second / first for first, second in itertools.pairwise(rates)] == pytest.approx([0.5] * 3)
    numbers = {trial.number: trial for trial in found.trials}
    assert found.origin(numbers[13]) == "#9 (own)"
    assert found.origin(numbers[9]) == "#4 (exploited member 0)"
    assert found.origin(numbers[0]) == "–"


def test_the_page_draws_members_takeovers_and_the_way(bred):
    page = render(bred)
    drawn = section(page, "lineage")
    assert drawn.count('class="point ') == 16
    assert drawn.count('class="ring"') == 1
    # Twelve trials went on from a checkpoint, three of them from another member's, all of those on the winner's way.
    assert len(re.findall(r'class="fork (?:own|exploit)', drawn)) == 12
    assert drawn.count('class="fork exploit won"') == 3
    assert drawn.count('class="head"') == 3
    assert drawn.count('class="spot"') == 16
    table = plain(drawn.partition("came about")[2].partition("</table>")[0])
    assert "0 3 #3 – 0.245 0.001259 1 0 #4 #3 (exploited member 3)" in table
    assert "3 2 #14 #9 (exploited member 1) 0.5902 0.0001574" in table
    assert "The values are those of the last generation only" in plain(section(page, "decision"))
    assert "generation member from" in plain(section(page, "ranking"))
    assert bred.sweep.expected == 16
    assert "Not searched, but different too" not in page  # whose checkpoint it was is told by the lineage


def test_other_searches_have_no_lineage(tmp_path):
    report = gather(showcase(tmp_path / "show"), use_tracking=False)
    assert report.population is None
    assert 'id="lineage"' not in render(report)


def test_ledgers_without_positions_have_none_either(tmp_path):
    directory = population(tmp_path / "old")
    ledger = json.loads((directory / "ledger.json").read_text())
    for entry in ledger["trials"]:
        del entry["position"], entry["forked_from"], entry["last_objective"]
    (directory / "ledger.json").write_text(json.dumps(ledger))
    assert gather(directory, use_tracking=False).population is None


def test_a_donor_that_is_not_in_the_ledger_ends_the_way(tmp_path):
    directory = population(tmp_path / "cut")
    ledger = json.loads((directory / "ledger.json").read_text())
    ledger["trials"] = [entry for entry in ledger["trials"] if entry["number"] >= 8]
    (directory / "ledger.json").write_text(json.dumps(ledger))
    found = gather(directory, use_tracking=False).population
    assert found is not None
    assert [trial.number for trial in found.path()] == [9, 14]
    assert lineage_chart(found, {}).count('class="point ') == 8


def test_levels_are_ranked_apart(tmp_path: Path):
    report = gather(levels(tmp_path / "levels"), use_tracking=False)
    assert report.main is not None
    assert [trial.number for trial in report.main.trials] == [6]  # although its number is the lowest of all
    page = render(report)
    assert "Ranked are the trials of level 3 of 3 (data.train_fraction = 1)." in plain(section(page, "ranking"))
    assert 'data-config="#3"' not in section(page, "ranking")
    listed = section(page, "levels")
    assert [text.split(":")[0] for text in re.findall(r"<h3>(.*?)</h3>", listed)] == [
        "level 2 of 3 (data.train_fraction = 0.5)",
        "level 1 of 3 (data.train_fraction = 0.25)",
    ]
    assert re.findall(r'<tr data-config="(#\d)"', listed) == ["#5", "#4", "#3", "#2", "#1"]
    assert re.findall(r"went on as #\d", listed) == ["went on as #6", "went on as #5", "went on as #4"]
    assert "5 trials of other levels are listed apart" in plain(section(page, "decision"))
    assert report.sweep.expected == 7


def test_a_protocol_of_its_own_is_apart_within_its_level(tmp_path: Path):
    page = render(gather(levels(tmp_path / "levels"), use_tracking=False))
    apart = section(page, "other-protocols")
    assert re.findall(r'<tr data-config="(#\d)"', apart) == ["#0"]
    assert "another protocol than the 3 ranked above of level 1 of 3" in plain(apart)
    assert "threshold 0.5 0.3" in plain(apart)
    assert "1 trial measured by another protocol" in plain(section(page, "decision"))
