"""The report in a real headless Chromium: it fits a phone, follows dark mode, says nothing on the console and loads nothing."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from temper import graph, pages
from temper.results import Results
from tests import chromium
from tests.chromium import Browser
from tests.test_pages import (  # noqa: F401  `results` is a fixture
    CARD,
    RUNS,
    SECTIONS,
    answers,
    likelihoods,
    matrix,
    openness,
    results,
)

pytestmark = pytest.mark.slow
PHONE, TABLET, DESKTOP = (390, 844), (820, 1180), (1280, 900)
SCHEMES = ("light", "dark")
KEPT = os.environ.get("TEMPER_SCREENSHOTS")  # a folder to look at them in

VISIBLE = """
[...document.querySelectorAll('h2')].map(head => {
  const box = head.getBoundingClientRect(), next = head.nextElementSibling.getBoundingClientRect();
  return [head.textContent, box.width > 0 && box.height > 0 && next.height > 0];
})"""
# What is wider than the screen and not inside a part that scrolls by itself.
WIDE = """
[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, nav')
  && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + ' ' + one.className).slice(0, 5)"""
# The ratio of luminances of text and what is behind it (WCAG 2.1, 1.4.3), of every element with a text of its own.
CONTRAST = """
(() => {
  const part = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const bright = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
  const behind = one => { for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor; if (!/, 0\\)$|transparent/.test(colour)) return colour; }
    return 'rgb(255, 255, 255)'; };
  const own = one => [...one.childNodes].some(node => node.nodeType == 3 && node.textContent.trim());
  return [...document.querySelectorAll('body *:not(svg *)')].filter(own).map(one => {
    const [text, back] = [getComputedStyle(one).color, behind(one)].map(bright).sort((a, b) => b - a);
    return [(text + 0.05) / (back + 0.05), one.tagName + ' ' + one.className];
  }).sort((a, b) => a[0] - b[0])[0];
})()"""
LETTERS = """
Math.min(...[...document.querySelectorAll('.pair svg text, .wide:not(.graph) svg text')]
  .map(one => one.getBoundingClientRect().height).filter(height => height > 0))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        binary = chromium.fetched()
    except FileNotFoundError as error:
        pytest.skip(f"no Chromium: {error}")
    found = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def report(results: Results, tmp_path: Path) -> Path:  # noqa: F811
    """The page, with the real picture of the graph."""
    results.stages["bench/gguf"] = {"c8_tokens_per_second": 70.0}
    results.stages["bench/eagle3"] = {"c8_tokens_per_second": 61.0}
    file = tmp_path / "report.html"
    picture = graph.picture(graph.stages())
    page = pages.report(results, CARD, matrix(), openness(), answers(), likelihoods(), RUNS, picture)
    file.write_text(page, encoding="utf-8")
    return file


@pytest.fixture(params=["made", "committed"])
def page_of(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A report with everything that one can hold, and the one of the committed run."""
    if request.param == "made":
        return "made", request.getfixturevalue("report")
    file = request.getfixturevalue("tmp_path") / "committed.html"
    shown = ["git", "-C", str(Path(__file__).resolve().parent), "show", "HEAD:./../reports/report.html"]
    file.write_bytes(subprocess.run(shown, capture_output=True, check=True).stdout)
    return "committed", file


def kept(name: str, picture: bytes) -> bytes:
    if KEPT:
        (Path(KEPT) / f"{name}.png").write_bytes(picture)
    return picture


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("width", "height"), [PHONE, TABLET, DESKTOP])
def test_the_report_fits_every_screen(
    browser: Browser, page_of: tuple[str, Path], width: int, height: int, scheme: str
) -> None:
    name, file = page_of
    with chromium.opened(browser, file, width, height, scheme) as page:
        assert page.errors() == []
        assert [address for address in page.requests() if not address.startswith(("file:", "data:"))] == []
        assert page.evaluate("innerWidth") == width
        assert page.evaluate("document.documentElement.scrollWidth") <= width, page.evaluate(WIDE)
        assert page.evaluate(WIDE) == []
        shown = page.evaluate(VISIBLE)
        assert [title for title, _ in shown] == SECTIONS
        assert all(is_visible for _, is_visible in shown), shown
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, where
        assert page.evaluate(LETTERS) >= 9, "letters of pictures, in pixels of the page"
        assert kept(f"report-{name}-{width}-{scheme}", page.screenshot()).startswith(b"\x89PNG")


def test_dark_and_light_differ_in_every_part(browser: Browser, report: Path) -> None:
    seen = {}
    for scheme in SCHEMES:
        with chromium.opened(browser, report, *PHONE, scheme) as page:
            colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            ink = "getComputedStyle(document.querySelector('.pair svg text')).fill"
            seen[scheme] = (*page.evaluate(colours), page.evaluate(ink), page.screenshot())
    assert all(light != dark for light, dark in zip(*seen.values(), strict=True))


def test_contents_lead_to_every_section(browser: Browser, report: Path) -> None:
    with chromium.opened(browser, report, *DESKTOP, "light") as page:
        links = page.evaluate("[...document.querySelectorAll('nav a')].map(one => one.getAttribute('href'))")
        found = page.evaluate(
            "[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash)?.textContent)"
        )
        assert found == SECTIONS
        assert len(set(links)) == len(SECTIONS)
        page.evaluate(
            "document.documentElement.style.scrollBehavior = 'auto'; document.querySelector('a[href=\"#cost\"]').click()"
        )
        assert page.evaluate("scrollY") > 500
