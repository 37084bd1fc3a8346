"""The report in a real browser: what is there, where it is, and that it can be used without a mouse."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from report_browser import BROWSER, Page, browser, connected
from report_sweeps import showcase

from sensorlab.report.attach import write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# Everything visible: its rectangle, and whether it lies inside of the window's width.
_MEASURED = """
(() => {
  const box = (e) => { const {width, height, right} = e.getBoundingClientRect(); return {width, height, right}; };
  const all = (s) => Array.from(document.querySelectorAll(s));
  return {
    window: document.documentElement.clientWidth,
    page: document.documentElement.scrollWidth,
    sections: all('main > section').map((e) => ({id: e.id, ...box(e)})),
    charts: all('svg.chart').map((e) => ({marks: e.querySelectorAll('*').length, ...box(e)})),
    text: Math.min(...all('svg.chart text').map((e) => e.getBoundingClientRect().height).filter((h) => h > 0)),
    rows: document.querySelectorAll('#ranking tbody tr').length,
    images: all('img').map((e) => ({natural: e.naturalWidth, alt: e.alt, ...box(e)})),
    background: getComputedStyle(document.body).backgroundColor,
  };
})()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_report(showcase(root / "show"), root / "report.html", use_tracking=False)


@pytest.fixture(scope="module")
def address():
    with browser() as found:
        yield found


def visit(address: str, use) -> None:
    """Run ``use(page)`` in the browser; afterwards the page has neither loaded nor complained about anything."""

    async def main() -> None:
        async with connected(address) as page:
            await use(page)
            await page.value("1")  # takes in what is still on its way
            assert [url for url in page.requests if not url.startswith(("file://", "data:"))] == []
            assert page.complaints == []

    asyncio.run(main())


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_it_looks_right(report, address, width, dark):
    async def use(page: Page) -> None:
        await page.open(report, width, dark=dark)
        seen = await page.value(_MEASURED)
        assert seen["page"] <= seen["window"] <= width  # tables scroll by themselves; the page never sideways
        assert len(seen["sections"]) == 12
        assert all(section["right"] <= width and section["height"] > 60 for section in seen["sections"])
        assert len(seen["charts"]) == 5
        assert all(chart["width"] > 500 and chart["height"] > 120 for chart in seen["charts"])
        assert all(chart["marks"] > 20 for chart in seen["charts"])
        assert seen["text"] >= 9  # pixels; smaller than that is not read
        assert seen["rows"] == 12
        assert len(seen["images"]) == 6
        assert all(image["natural"] == 320 and image["width"] > 250 and image["alt"] for image in seen["images"])
        light = sum(map(int, seen["background"].strip("rgb()").split(","))) / 3
        assert light < 64 if dark else light > 192

    visit(address, use)


def test_sorting_and_picking_with_the_keyboard(report, address):
    first = "document.querySelector('#ranking tbody tr').dataset.config"

    async def use(page: Page) -> None:
        await page.open(report, 1280)
        best = await page.value(first)
        await page.value("document.querySelectorAll('#ranking thead button')[2].focus()")  # the mean
        await page.press("Enter", 13)
        assert (
            await page.value("document.querySelector('#ranking [aria-sort]').getAttribute('aria-sort')") == "ascending"
        )
        worst = await page.value(first)
        assert worst != best
        await page.press("Enter", 13)
        assert await page.value(first) == best
        await page.value("document.querySelector('#ranking tbody .pick').focus()")
        await page.press("Enter", 13)
        assert await page.value("document.querySelectorAll('#curves .curve.on').length") == 2  # both of its seeds
        assert await page.value("document.querySelectorAll('svg.chart.dim').length") >= 3
        await page.press("Enter", 13)
        assert await page.value("document.querySelectorAll('.on').length") == 0

    visit(address, use)


def test_larger_pictures(report, address):
    async def use(page: Page) -> None:
        await page.open(report, 1280)
        await page.value("document.querySelector('button.larger').click()")
        assert await page.value("Math.min(...Array.from(document.images).map((e) => e.clientWidth))") > 1000

    visit(address, use)


def test_the_name_of_a_mark_is_shown_at_once(report, address):
    async def use(page: Page) -> None:
        await page.open(report, 1280, height=4000)
        place = "(() => { const r = document.querySelector('#cost .point').getBoundingClientRect();"
        x, y = await page.value(place + " return [r.x + r.width / 2, r.y + r.height * 0.6]; })()")
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        assert await page.value("document.getElementById('tip').hidden") is False
        assert "epochs" in await page.value("document.getElementById('tip').textContent")

    visit(address, use)


def test_the_page_refuses_foreign_scripts_and_the_network(report, address):
    """The second wall behind the escaping: whatever got into the page, it runs nothing and reaches nobody."""
    attack = (
        """document.body.insertAdjacentHTML('beforeend', '<img src="http://127.0.0.1:9/x" onerror="window.hit=1">')"""
    )

    async def main() -> None:
        async with connected(address) as page:
            await page.open(report, 1280)
            await page.value(attack)
            assert await page.value("fetch('http://127.0.0.1:9/').then(() => 'reached', () => 'refused')") == "refused"
            await asyncio.sleep(0.3)
            assert await page.value("window.hit === undefined")
            assert sum("Content Security Policy" in complaint for complaint in page.complaints) >= 2

    asyncio.run(main())


def test_it_prints(report, address):
    async def use(page: Page) -> None:
        await page.open(report, 1280, dark=True)
        document = await page.pdf()
        assert document.startswith(b"%PDF")
        assert len(document) > 50_000

    visit(address, use)


def test_without_scripts_everything_is_there(report, address):
    async def use(page: Page) -> None:
        await page.call("Emulation.setScriptExecutionDisabled", value=True)
        await page.open(report, 1280)
        seen = await page.value(_MEASURED)
        assert seen["rows"] == 12
        assert len(seen["images"]) == 6
        assert await page.value("document.querySelectorAll('svg.chart title').length") > 20  # the browser's own tips
        await page.call("Emulation.setScriptExecutionDisabled", value=False)

    visit(address, use)
