"""The page in a real headless Chromium: light, dark, printed, on a telephone, with no network."""

import json
import os
import sys

import pytest

from compress.report.collect import collect
from compress.report.write import write_report
from tests.report.small_run import (
    CURVE,
    EVALUATED_BY_PATH,
    HISTOGRAM,
    LAYERS,
    PICTURE,
    REFUSED,
    SLIM_ROWS,
    done,
    write_run,
)
from tools.browser_fixture import chromium, is_installed, libraries, python_path

pytestmark = pytest.mark.slow

# Without these Chromium asks its makers' servers for updates, which a closed network refuses.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--no-first-run")  # fmt: skip
SIZES = {"wide": (1200, 900), "tablet": (800, 1000), "telephone": (390, 844), "tiny": (320, 600)}
# Whatever sticks out to the right, but for what lies inside a box that scrolls.
STICKING_OUT = """() => [...document.querySelectorAll('body *')]
    .filter(each => !each.closest('table') && !each.closest('svg'))
    .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
    .map(each => each.outerHTML.slice(0, 120))"""
TEXT_OUTSIDE = """() => [...document.querySelectorAll('svg text')]
    .filter(each => {
        const own = each.getBoundingClientRect();
        const card = each.closest('figure').getBoundingClientRect();
        return own.left < card.left || own.right > card.right || own.bottom > card.bottom;
    })
    .map(each => each.textContent)"""
# WCAG's contrast of text with what is behind it: the card, or else the page.
CONTRAST = """() => {
    const parts = text => text.match(/[\\d.]+/g).map(Number);
    const light = text => parts(text).slice(0, 3).map(each => each / 255)
        .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = each => {
        for (let at = each; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if ((parts(colour)[3] ?? 1) > 0) return colour;
        }
    };
    return [...document.querySelectorAll('h1, h2, h3, p, td, th, small, a, li, figcaption, text')]
        .filter(each => each.getClientRects().length)
        .map(each => {
            const style = getComputedStyle(each);
            const own = light(each.closest('svg') ? style.fill : style.color);
            const [a, b] = [own, light(behind(each))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), each.textContent.slice(0, 40)];
        })
        .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.fixture(scope="module")
def browser():
    if not is_installed():
        pytest.fail("the browser is missing; install it with: python tools/browser_fixture.py")
    sys.path.append(str(python_path()))
    from playwright.sync_api import sync_playwright

    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries())}
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=str(chromium()), args=list(QUIET), env=environment
        )
        yield program
        program.close()
    sys.path.remove(str(python_path()))


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """One run whose histogram is drawn by us, and one whose histogram is a picture."""
    folder = tmp_path_factory.mktemp("runs")
    slimmed = done({"threshold": 0.02, "gamma": {"share_below_1pct": 0.625}})
    long = "a-name-that-goes-on-and-on-" * 7
    names = {"thin/slim/0.5/done.json": slimmed, "thin/slim/0.5/gamma.svg": PICTURE,
             f"early/export/{long}/done.json": done({"parity": {"images": 1}}),
             "early/evaluate/dynn/done.json": done(EVALUATED_BY_PATH),
             "early/plan/dynn/plan.json": json.dumps(REFUSED)}  # fmt: skip
    runs = [write_run(folder / "a"), write_run(folder / "b", **names)]
    return write_report([collect(run) for run in runs], folder / "out").html.as_uri()


@pytest.fixture
def opened(browser, address):
    """Open the page; what it says on the console, or asks for, fails the test."""
    said, pages = [], []

    def open_page(size="wide", scheme="light"):
        width, height = SIZES[size]
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    asked = [each for each in said if each != address and not each.startswith("data:image/svg+xml")]
    assert asked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out_and_everything_can_be_read(opened, size, scheme):
    page = opened(size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate(TEXT_OUTSIDE) == []
    assert page.evaluate(CONTRAST) == []


def test_dark_is_dark(opened):
    shades = [
        opened(scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, shade[4:-1].split(","))) for shade in shades)
    assert dark < 100 < 600 < light


def test_wide_tables_scroll_inside_their_box(opened):
    page = opened("telephone")
    table = page.locator(".table", has_text="Parity of exports").first
    assert table.evaluate("each => each.scrollWidth > each.clientWidth")
    table.evaluate("each => { each.scrollLeft = 300; }")
    first = table.locator("tbody th").first.bounding_box()
    assert 0 <= first["x"] < 40  # the name of the network stays in sight


def test_bars_are_drawn_as_long_as_the_numbers_are(opened):
    bars = opened().locator("figure", has_text="Widths of slim 0.5").first.locator(".bar")
    widths = [bars.nth(i).bounding_box()["width"] for i in range(bars.count())]
    afters = [layer["after"] for layer in LAYERS]
    assert [w / sum(widths) for w in widths] == pytest.approx(
        [after / sum(afters) for after in afters], abs=0.01
    )


def test_the_histogram_is_drawn_as_high_as_its_counts(opened):
    bars = opened().locator("figure", has_text="|γ| of slim 0.5").first.locator(".bar")
    heights = [bars.nth(i).bounding_box()["height"] for i in range(bars.count())]
    counts = HISTOGRAM["counts"]
    assert [h / sum(heights) for h in heights] == pytest.approx(
        [count / sum(counts) for count in counts], abs=0.01
    )


def test_a_curve_goes_where_its_numbers_go(opened):
    figure = opened().locator("figure", has_text="Validation loss").first
    points = figure.locator("polyline").first.evaluate(
        "each => [...each.points].map(({x, y}) => [x, y])"
    )
    ticks = figure.locator("svg").evaluate(
        """svg => [...svg.querySelectorAll('.tick[text-anchor=end]')].map(each =>
            [Number(each.textContent), Number(each.getAttribute('y')) - 3.5])"""
    )
    (low, low_y), (high, high_y) = ticks[0], ticks[-1]
    read = [low + (y - low_y) * (high - low) / (high_y - low_y) for _, y in points]
    assert read == pytest.approx([line["validation_loss"] for line in CURVE], abs=0.01)


def test_a_table_shows_the_numbers_of_the_json(opened):
    page = opened()
    table = page.locator(".table", has_text="Final comparison").first
    cells = table.locator("tbody tr").nth(1).locator("td[data-value]")
    shown = cells.evaluate_all("each => each.map(cell => Number(cell.dataset.value))")
    row = SLIM_ROWS[1]
    assert shown == [0.45, row["params"], row["macs"], 60.25, 94.5, 0.4]
    assert table.inner_text().replace("\u00a0", " ").count("40.0 k") == 1


def test_a_picture_from_a_file_is_shown_and_runs_nothing(opened):
    picture = opened().locator("img.picture")
    assert picture.evaluate("each => each.complete")


def test_it_can_be_printed(opened):
    page = opened()
    page.emulate_media(media="print", color_scheme="light")
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_links_lead_to_their_parts(opened):
    page = opened()
    page.locator("nav a").last.click()
    assert "Versions and hardware" in page.locator(":target").inner_text()
