"""The pages that a real sweep ends with, in a real browser: its report, and MLflow's comparison of its trials."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "report"))

from report_browser import BROWSER, Page, browser, connected  # noqa: E402

from sensorlab.runs.client import SWITCHES, open_client  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (PATH or SENSORLAB_TEST_BROWSER)"),
]

SMALL = {
    "base": str(ROOT / "experiments" / "configs" / "tune_bev.yaml"),
    "name": "small",
    "task": {
        "grid": {"x": [-24, 24], "y": [-5, 5], "z": [-24, 24], "cells": [24, 2, 24]},
        "model": {"encoder": "res18", "latent_dim": 8, "neck_width": 16, "decoder_width": 8},
        "image": {"size": [48, 96]},
        "metrics": {"distance_bins": 2, "max_distance": 24.0},
        "radar": {"sweeps": 1},
    },
    "data": {
        "path": "datasets/small",
        "prepare": {"source": "synthetic", "scenes": 2, "keyframes": 4, "sweeps": 1, "image_height": 90},
        "global_batch": 2,
        "val_batch": 2,
    },
    "train": {"duration": "2 epochs", "log_every": "1 step"},
    "eval": {"panels": 1},
}
SWEEP = {"num_trials": 3, "seeds": 2, "asha": {"grace_epochs": 1, "reduction": 2}}
SPACE = {"task.image.size": {"choice": [[48, 96]]}, "task.model.encoder": {"choice": ["res18"]}}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three configurations with two seeds each, two epochs long at most."""
    place = tmp_path_factory.mktemp("sweep")
    (place / "small.yaml").write_text(yaml.safe_dump({**SMALL, "sweep": {**SWEEP, "space": SPACE}}))
    command = [sys.executable, str(ROOT / "experiments" / "tune_bev.py"), "--config", "small.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=700, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trials(outcome) -> list[dict[str, Any]]:
    return json.loads((Path(outcome["directory"]) / "ledger.json").read_text())["trials"]


@pytest.fixture(scope="module")
def tab() -> Iterator[str]:
    with browser() as address:
        yield address


def visit(tab: str, use: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with connected(tab) as page:
            await use(page)

    asyncio.run(main())


def ranked(trials: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """(number of the first trial, mean, repeats) of the configurations, best first, from nothing but the ledger."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        key = json.dumps({name: value for name, value in trial["values"].items() if name != "seed"}, sort_keys=True)
        groups.setdefault(key, []).append(trial)
    found = []
    for group in groups.values():
        longest = [trial for trial in group if trial["epoch"] == max(other["epoch"] for other in group)]
        mean = statistics.fmean(trial["objective"] for trial in longest)
        found.append((f"#{min(trial['number'] for trial in group)}", mean, len(longest)))
    return sorted(found, key=lambda item: -item[1])


# Marks with a place on the page: what a chart has drawn, beyond its axes and their names.
_SEEN = """
(() => {
  const all = (s) => Array.from(document.querySelectorAll(s));
  const visible = (s) => all(s).filter((e) => {
    const {width, height} = e.getBoundingClientRect(), style = getComputedStyle(e);
    return width + height > 0 && style.visibility === 'visible' && (style.stroke !== 'none' || style.fill !== 'none');
  }).length;
  const columns = all('#ranking thead th').map((e) => e.textContent);
  return {
    rows: all('#ranking tbody tr').map((r) => Array.from(r.cells).map((c) => [c.textContent, c.dataset.sort])),
    columns,
    curves: visible('#curves .curve .line, #curves .curve .dot'),
    ends: visible('#curves .curve .stop'),
    rungs: all('#curves .rung-label').map((e) => e.textContent),
    points: visible('#cost .point .mark'),
    bars: visible('#space .bars .bar'),
    lines: visible('#space .parallel .pc'),
    times: visible('#times .phase'),
    tables: all('#tables h3').map((e) => e.textContent),
    result: all('#tables table')[1] ? Array.from(all('#tables table')[1].rows[1].cells).map((c) => c.dataset.sort) : [],
    images: all('img').map((e) => [e.complete, e.naturalWidth, e.naturalHeight]),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()
"""


@pytest.mark.parametrize("width", [1280, 1920])
def test_the_report(outcome, trials, tab, width):
    async def use(page: Page) -> None:
        await page.open(Path(outcome["directory"]) / "report.html", width)
        seen = await page.value(_SEEN)
        expected = ranked(trials)
        mean, count = seen["columns"].index("mean val/iou"), seen["columns"].index("n")
        shown = [(row[1][0], float(row[mean][1]), int(row[count][0].split()[0])) for row in seen["rows"]]
        assert shown == [(label, pytest.approx(value, rel=1e-12), n) for label, value, n in expected]
        assert [row[0][0] for row in seen["rows"]] == ["1", "2", "3"]
        assert seen["curves"] >= len(trials)
        assert seen["ends"] == sum(trial["state"] == "stopped" for trial in trials)
        assert seen["rungs"][0].startswith(f"{len(trials)} → ")
        assert seen["points"] == seen["lines"] == len(trials)
        assert seen["bars"] >= 2  # a searched key, and the one of random numbers
        assert seen["times"] >= len(trials)
        assert seen["tables"] == ["iou by distance", "iou by threshold"]
        best = min((t for t in trials if f"#{t['number']}" == expected[0][0]), key=lambda t: t["number"])
        same = [t["objective"] for t in trials if is_repeat(t, best)]
        assert float(seen["result"][1]) in [pytest.approx(value) for value in same]
        assert len(seen["images"]) == 3  # best, median and worst
        assert all(complete and wide > 100 and high > 30 for complete, wide, high in seen["images"])
        assert seen["wide"] <= 0
        await page.value("1")
        assert [url for url in page.requests if not url.startswith(("file://", "data:"))] == []
        assert page.complaints == []

    visit(tab, use)


def is_repeat(trial: dict[str, Any], other: dict[str, Any]) -> bool:
    own, reference = ({k: v for k, v in t["values"].items() if k != "seed"} for t in (trial, other))
    return own == reference


@pytest.fixture(scope="module")
def store(outcome) -> str:
    return json.loads((Path(outcome["directory"]) / "sweep.json").read_text())["tracking_uri"]


@pytest.fixture(scope="module")
def pages(store, tmp_path_factory) -> Iterator[str]:
    """Address of ``mlflow ui`` over the sweep's store, as the sweep says to start it, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--port", str(port)]
    log = tmp_path_factory.mktemp("ui") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", store],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, **SWITCHES, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + 120
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


_TRIALS = "Array.from(document.querySelectorAll('a')).map((a) => a.textContent).filter((t) => /^trial \\d/.test(t))"
_DRAWN = """
(() => {
  const traces = Array.from(document.querySelectorAll('.js-plotly-plot .scatterlayer .trace'))
    .filter((e) => e.getBoundingClientRect().width + e.getBoundingClientRect().height > 0).length;
  const inked = Array.from(document.querySelectorAll('canvas')).filter((canvas) => {
    const {width, height} = canvas;
    if (!width || !height) { return false; }
    return canvas.getContext('2d').getImageData(0, 0, width, height).data.some((value) => value > 0);
  }).length;
  const images = Array.from(document.images).filter((e) => e.src.includes('artifact') && e.naturalWidth > 0).length;
  return {traces, inked, images, text: document.body.innerText};
})()
"""


@pytest.mark.parametrize("width", [1280, 1920])
def test_the_comparison_page(outcome, trials, tab, pages, store, width):
    address = urlsplit(outcome["link"])._replace(netloc=pages).geturl()
    client = open_client(store)
    pictured = sum("mlflow.loggedImages" in client.get_run(trial["run_id"]).data.tags for trial in trials)
    assert pictured
    # MLflow sorts by the latest value of a metric, the sweep ranks by the best one.
    order = [f"trial {trial['number']:03d}" for trial in sorted(trials, key=lambda trial: -trial["last_objective"])]

    async def use(page: Page) -> None:
        await page.open(address, width, height=2400)
        await page.wait_for(f"{_TRIALS}.length >= {len(trials)}", 120)
        names = await page.value(_TRIALS)
        assert sorted(names) == sorted(order)
        ties = len({trial["last_objective"] for trial in trials}) < len(trials)
        assert ties or names == order  # every trial with its objective
        drawn = await page.wait_for(f"((s) => s.images >= {pictured} && s.traces && s.inked && s)({_DRAWN})", 120)
        assert drawn["traces"] >= len(trials)  # the curves of the objective
        for heading in ("Parallel Coordinates", "val/iou", "Pictures", "optim.log10_lr"):
            assert heading in drawn["text"]
        foreign = [url for url in page.requests if not re.match(rf"http://{re.escape(pages)}/|data:|blob:|about:", url)]
        assert foreign == []

    visit(tab, use)
