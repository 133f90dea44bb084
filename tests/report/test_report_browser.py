"""The pages in a real browser: no error, what moves moves, nothing sticks out, and names stay text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrcnn.evaluation.comparison import compare_runs
from fastrcnn.evaluation.evaluate import Evaluation, compare, write_results
from fastrcnn.evaluation.matches import read
from fastrcnn.evaluation.voc_ap import ClassDetections
from fastrcnn.report.compare import write_comparison
from fastrcnn.report.report import write_report
from fastrcnn.structures import Sample

HOSTILE = "<script>document.title='broken'<!--\"'&lt;"
NAMES = [HOSTILE, *(f"kind {k}" for k in range(29))]
OPTIONS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]
A, B = (10, 10, 50, 50), (60, 10, 90, 70)


def evaluation(folder: Path, right: int) -> Evaluation:
    """Ten pictures, each with an object of the first class and one of the second. Of the first, `right` are found with
    scores .95, .85, ..., and one is taken for the second class with a score of .5."""
    picture = folder / 'it\'s "one".png'
    Image.new("RGB", (100, 80), (90, 120, 60)).save(picture)
    boxes = np.array([A, B], np.float32)
    samples = [Sample(f"p{i}", picture, 100, 80, boxes, np.array([1, 2]), np.zeros(2, bool)) for i in range(10)]
    nothing = ClassDetections(np.zeros(0), np.zeros(0), np.zeros((0, 4)))
    detections = dict.fromkeys(NAMES, nothing)
    scores = 0.95 - np.arange(right) / 10
    detections[HOSTILE] = ClassDetections(np.arange(right), scores, np.tile(A, (right, 1)))
    detections["kind 0"] = ClassDetections(np.array([9, 9]), np.array([0.5, 0.3]), np.array([A, (0, 60, 9, 70)]))
    return compare(detections, samples, NAMES, "voc10")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html and compare.html."""
    folder = tmp_path_factory.mktemp("pages")
    for name, right in (("one", 4), ("two", 6)):
        result = evaluation(folder, right)
        write_results(result, folder / name)
        write_report(result, folder, HOSTILE, [("Command", HOSTILE)])
    found = compare_runs({name: read(folder / name) for name in ("one", "two")}, 100, 0)
    write_comparison(found, folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page is opened")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed: no page is opened")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file; in the end there must have been no error, and nothing asked of the network."""
    said: list[str] = []
    contexts = []

    def opened(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def column(page: Any, table: str, number: int) -> list[str]:
    return page.locator(f"{table} tbody tr").evaluate_all(
        "(rows, n) => rows.map(row => row.cells[n].firstChild.textContent)", number
    )


def slide(page: Any, value: int) -> None:
    page.locator("#threshold").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def figures(page: Any) -> list[str]:
    return page.locator("#figures b").all_inner_texts()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
@pytest.mark.parametrize("name", ["report.html", "compare.html"])
def test_nothing_sticks_out_and_no_error(open_page: Any, files: Path, name: str, width: int, scheme: str) -> None:
    page = open_page(files / name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title() in (HOSTILE, "Comparison of evaluations")


def test_names_stay_text(open_page: Any, files: Path) -> None:
    page = open_page(files / "report.html")
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("table.sortable tbody th").first.inner_text() == HOSTILE
    assert page.locator("#matrix tbody th").first.inner_text() == HOSTILE
    assert page.locator("#case-class option").nth(1).inner_text() == HOSTILE
    assert page.locator("script").count() == 2


def test_headings_sort_with_the_keyboard(open_page: Any, files: Path) -> None:
    page = open_page(files / "report.html")
    table = "#at"
    button = page.locator(f"{table} th button").nth(2)  # recall
    button.focus()
    page.keyboard.press("Enter")
    head = page.locator(f"{table} th[aria-sort]").nth(2)
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, table, 2)[:2] == ["0.600", "0.000"]
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, table, 2)[:3] == ["0.000", "0.600", "–"]  # what has no number is last
    page.locator(f"{table} th button").first.click()
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, table, 0)[1:4] == ["kind 0", "kind 1", "kind 2"]  # not kind 10


def test_the_slider_moves_everything(open_page: Any, files: Path) -> None:
    """Six of twenty objects are right, at .95, .85, ..., .45; a confusion scores .5, a background .3."""
    page = open_page(files / "report.html")
    assert page.locator("#value").inner_text() == "0.32"  # the first threshold above the background's score
    slide(page, 0)
    assert figures(page) == ["0.750", "0.300", "0.429", "6", "2", "14"]
    assert column(page, "#kinds", 1) == ["0", "1", "0", "0", "1", "14"]
    page.locator("#threshold").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert page.locator("#threshold").get_attribute("aria-valuetext") == "0.60"
    assert figures(page) == ["1.000", "0.200", "0.333", "4", "0", "16"]
    assert "precision 1.000, recall 0.200" in page.locator("#shown").inner_text()
    slide(page, 49)
    assert figures(page) == ["–", "0.000", "0.000", "0", "0", "20"]


def test_the_matrix_shows_the_most_confused_or_the_chosen(open_page: Any, files: Path) -> None:
    page = open_page(files / "report.html")
    slide(page, 25)  # .5: five right, one confusion
    heads = page.locator("#matrix thead th").all_inner_texts()
    assert len(heads) == 1 + 25 + 2  # others, missed
    assert heads[1:3] == [HOSTILE, "kind 0"]
    first = page.locator("#matrix tbody tr").first.locator("td").all_inner_texts()
    assert (first[:3], first[-2:]) == (["5", "1", ""], ["", "5"])
    page.locator("#around").select_option("28")
    heads = page.locator("#matrix thead th").all_inner_texts()
    assert "kind 27" in heads
    background = page.locator("#matrix tbody tr").last.locator("td").all_inner_texts()
    assert background[:2] == ["", ""]
    slide(page, 0)
    background = page.locator("#matrix tbody tr").last.locator("td").all_inner_texts()
    assert background[:2] == ["", "1"]


def test_the_gallery_filters(open_page: Any, files: Path) -> None:
    """16 mistakes: a confusion, a background, and of the objects four and ten that are missed."""
    page = open_page(files / "report.html")
    shown = page.locator(".cases figure:visible")
    assert (shown.count(), page.locator("#count").inner_text()) == (16, "16 of 16 shown")
    page.locator("#case-kind").select_option("confusion")
    assert shown.count() == 1
    assert "kind 0 0.50: confusion" in shown.first.inner_text()
    page.locator("#case-class").select_option(HOSTILE)
    assert (shown.count(), page.locator("#count").inner_text()) == (0, "0 of 0 shown")
    page.locator("#case-kind").select_option("")
    assert shown.count() == 4
    page.locator("#case-class").select_option("")
    page.evaluate("filter(5)")
    assert (shown.count(), page.locator("#count").inner_text()) == (5, "5 of 16 shown")
    page.locator("button", has_text="Show 11 more").click()
    assert shown.count() == 16
    assert not page.locator("#more").is_visible()
    assert shown.first.locator("image").evaluate("e => e.getBoundingClientRect().width") > 50


def test_the_comparison_sorts(open_page: Any, files: Path) -> None:
    page = open_page(files / "compare.html")
    assert column(page, "table.sortable", 0)[:2] == ["mAP", HOSTILE]
    page.locator("th button", has_text="B − A").click()
    assert column(page, "table.sortable", 4)[:3] == ["+0.200", "+0.100", "0.000"]
    page.locator("th button", has_text="B is").click()  # words
    assert list(dict.fromkeys(column(page, "table.sortable", 6))) == ["not certain", "–"]
