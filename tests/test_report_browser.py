"""Pages in a real browser: sorting, no error, alt texts, no width beyond the screen."""

from __future__ import annotations

import shutil

import pytest

import run_script
from pipeline.comparing import compare_runs
from sweeps import grid
from sweeps.figures import sweep_figures
from tests.test_page import runs  # noqa: F401  (a fixture)
from tests.test_sweeps import fake  # noqa: F401  (a fixture)

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if BROWSER is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
def test_the_report_works_in_a_browser(browser, fake, tmp_path, monkeypatch, real_plots):  # noqa: F811
    monkeypatch.setattr(grid, "sweep_figures", sweep_figures)
    command = [
        "digits_resnet",
        "--methods",
        "rtn",
        "gpfq",
        "--bits",
        "4,4",
        "2,4",
        "--seeds",
        "1",
        "13",
    ]
    assert run_script.main([*command, "--output_dir", str(fake)]) == 1
    browser.get((fake / "report.html").as_uri())
    tables = browser.find_elements("css selector", "table.sortable")
    assert len(tables) == 2
    heads = tables[1].find_elements("css selector", "th button")

    def column(number: int) -> list[str]:
        cells = tables[1].find_elements("css selector", f"tbody td:nth-child({number + 1})")
        return [cell.get_attribute("data-value") for cell in cells]

    names = [head.text for head in heads]
    seed, bits = names.index("seed"), names.index("n_bits_w")
    for number in (seed, bits):
        heads[number].click()
        assert [float(v) for v in column(number)] == sorted(float(v) for v in column(number))
        heads[number].click()
        found = [float(v) for v in column(number)]
        assert found == sorted(found, reverse=True)
    assert heads[bits].find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    images = browser.find_elements("css selector", "img")
    assert len(images) == 2
    assert all(image.get_attribute("alt") for image in images)
    assert all(browser.execute_script("return arguments[0].naturalWidth", i) > 300 for i in images)
    for width in (1280, 500):
        browser.set_window_size(width, 900)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= browser.execute_script("return document.documentElement.clientWidth")
    assert browser.get_log("browser") == []


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["report.html", "comparison.html"])
def test_the_pages_of_runs_fit_a_screen_and_a_phone(browser, runs, real_plots, name):  # noqa: F811
    page = runs / name
    if name == "report.html":
        page = next(runs.glob("rtn/run_*/report.html"))
    else:
        compare_runs([runs / "rtn", runs / "aciq_mix"], runs, force=False)
    for width in (1280, 390):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(page.as_uri())
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= browser.execute_script("return document.documentElement.clientWidth")
    images = browser.find_elements("css selector", "img")
    assert images
    assert all(image.get_attribute("alt") for image in images)
    assert all(browser.execute_script("return arguments[0].naturalWidth", i) > 0 for i in images)
    assert browser.get_log("browser") == []
