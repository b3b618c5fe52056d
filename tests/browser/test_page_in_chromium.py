"""The page of `overopt report` in Chromium, without a network: drawn, switched, slid through."""

import shutil
from pathlib import Path

import pytest
from report_results import write_results

from overopt.reports.page import report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
DESK = Path(__file__).parents[2] / "experiments" / "results" / "desk"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return report(write_results(folder / "results"), folder / "report.html", made_by="a test")


def opened(chromium, file, *, width=1000, scheme="light"):
    """The page, and the list of everything that went wrong on it."""
    context = chromium.new_context(
        offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}
    )
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("request", lambda r: wrong.append(r.url) if r.url.startswith("http") else None)
    page.goto(file.resolve().as_uri())
    return page, wrong


def test_curves_are_drawn_and_can_be_switched(chromium, file):
    page, wrong = opened(chromium, file)
    assert page.locator("#panels svg").count() == 2
    assert page.locator("#panels path.gold").count() == 6
    assert page.locator("#panels path.interval").count() == 6
    page.locator("#intervals").uncheck()
    assert page.locator("#panels path.interval").count() == 0
    page.locator("input[data-facet=proxy][value='106M proxy']").uncheck()
    assert page.locator("#panels path.gold").count() == 4
    page.locator("input[data-facet=method][value='PPO']").uncheck()
    assert page.locator("#panels svg").count() == 1
    page.locator("input[data-facet=method][value='best-of-n']").uncheck()
    assert page.get_by_text("Nothing is switched on.").is_visible()
    assert wrong == []


def test_the_slider_shows_the_responses_of_its_point(chromium, file):
    page, wrong = opened(chromium, file)
    viewer = page.locator(".viewer[data-method='best-of-n']")
    assert "n 512 ·" in viewer.locator("output").inner_text()
    assert "at 512 of" in viewer.locator(".response").first.inner_text()
    slider = viewer.locator("input[type=range]")
    slider.focus()
    slider.press("Home")
    assert "n 1 · √KL 0.00 · gold 0.00" in viewer.locator("output").inner_text()
    slider.press("ArrowRight")
    assert "n 2 ·" in viewer.locator("output").inner_text()
    assert "at 2 of" in viewer.locator(".response").first.inner_text()
    assert viewer.locator(".card").count() == 6
    assert "lowest gold, proxy furthest above gold" in viewer.locator(".card h3").first.inner_text()
    viewer.locator("select").select_option(index=2)
    assert "n 2 ·" in viewer.locator("output").inner_text()  # another proxy at the same point
    assert (
        page.locator(".viewer[data-method='PPO'] output").inner_text().startswith("PPO step 60 ·")
    )
    assert wrong == []


def test_hostile_responses_stay_text(chromium, file):
    page, wrong = opened(chromium, file)
    assert "<script>window.hacked = true</script>" in page.locator(".response").first.inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 800, 1600])
def test_it_fits_any_screen_in_both_schemes(chromium, file, width, scheme):
    page, wrong = opened(chromium, file, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back, text = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert contrast(back, text) > 7
    panels = page.locator("#panels figure")
    side_by_side = panels.nth(0).bounding_box()["y"] == panels.nth(1).bounding_box()["y"]
    assert side_by_side == (width > 900)
    assert wrong == []


def contrast(one, other):
    """Contrast of two colours ``rgb(r, g, b)``, as WCAG 2 defines it."""

    def luminance(color):
        parts = [int(x) / 255 for x in color[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
def test_a_large_experiment_opens_with_means_over_seeds(chromium, tmp_path):
    file = report(DESK, tmp_path / "desk.html", made_by="a test")
    assert file.stat().st_size < 6_000_000
    page, wrong = opened(chromium, file)
    assert page.locator("#panels path.gold").count() == 8  # four sizes, two methods, most data
    page.locator("input[data-facet=pairs][value='300']").check()
    assert page.locator("#panels path.gold").count() == 11
    page.locator("input[data-facet=seed][value='0']").check()
    assert page.locator("#panels path.gold").count() == 22
    assert wrong == []
