"""The report page in a real Chromium: it is drawn without an error, and its controls work."""

import json
import shutil
from pathlib import Path

import pytest

from common.reporting import html, results
from common.reporting.page import PUBLISHED
from common.reporting.results import Findings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    " disable-component-update disable-sync"
)
ABOUT = {"call_seconds": 1, "command": "python x.py --flag 'a b'", "data": "D", "seed": 0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with a selection of the published results, from all thirteen parts."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("problem1", "embedded/problem2", "full_width/problem3", "problem3"):
        shutil.copytree(
            PUBLISHED / name,
            folder / name.replace("embedded/", ""),
            ignore=shutil.ignore_patterns("runs", "stems", "factorial", "exponents", "reproduce"),
        )
    return folder


@pytest.fixture(scope="module")
def page(out):
    """The page of these results."""
    html.write(out)
    return out / "report.html"


def see(browser, path: Path, width_px: int = 1440, theme: str = "light"):
    """Open a page at this width and theme; returns a function that evaluates JavaScript in it."""
    from selenium.webdriver.support.ui import WebDriverWait

    size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(path.as_uri())
    # `get` may return too early if a page is loaded again.
    complete = "return document.readyState === 'complete'"
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(complete))
    return lambda code, *values: browser.execute_script(f"return {code}", *values)


def faults(browser) -> list[str]:
    """The console's error messages since the last call."""
    return [row["message"] for row in browser.get_log("browser") if row["level"] == "SEVERE"]


def colours(run) -> int:
    """How many colours the first chart's canvas has; a blank canvas has one."""
    return run(
        """(() => { const canvas = document.querySelector("figure.chart canvas");
        const all = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(all.buffer)).size; })()"""
    )


def test_every_figure_is_drawn_and_nothing_overflows(browser, page, out):
    for width_px in (1440, 360):
        run = see(browser, page, width_px)
        run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        counts = run("[...document.querySelectorAll('figure.chart')].map((f) => +f.dataset.drawn)")
        wanted = sum(len(run.charts) for runs in html.read_runs(out)[0].values() for run in runs)
        assert len(counts) == wanted > 10
        assert all(counts)
        assert colours(run) > 20
        pictures = run("""Promise.all([...document.images].map(async (image) => {
            image.loading = "eager"; await image.decode(); return image.naturalWidth; }))""")
        assert len(pictures) > 10
        assert min(pictures) > 50
        assert run("document.documentElement.scrollWidth") <= width_px
        assert faults(browser) == []


def test_tables_sort_by_exact_numbers(browser, page):
    run = see(browser, page)
    column = "[...document.querySelectorAll('#p1\\\\.2 .sortable')[0].rows].slice(1)"
    column += ".map((row) => row.cells[2].dataset.v ?? row.cells[2].textContent).map(Number)"
    button = "document.querySelectorAll('#p1\\\\.2 .sortable')[0].querySelectorAll('button')[2]"
    before = run(column)
    run(f"{button}.click()")
    assert run(column) == sorted(before) != before
    run(f"{button}.click()")
    assert run(column) == sorted(before, reverse=True)
    assert run(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"


def test_a_cursor_in_a_chart_tells_the_values(browser, page):
    from selenium.webdriver.common.keys import Keys

    run = see(browser, page)
    plot = browser.find_element("css selector", "#p2\\.2 .plot")
    plot.send_keys(Keys.ARROW_RIGHT + Keys.ARROW_RIGHT)
    told = run("[...arguments[0].querySelectorAll('.u-value')].map((v) => v.textContent)", plot)
    spec = json.loads(run("document.querySelector('#p2\\\\.2 .chart script').textContent"))
    assert told[0] == str(spec["x"][1]) == "3"  # the second epoch that was evaluated
    shown = float(told[1].split()[0])
    assert shown == pytest.approx(spec["series"][0]["values"][1], rel=1e-3)


def test_the_doctors_slider_goes_through_its_steps(browser, page):
    run = see(browser, page)
    slider = "document.querySelector('#p3\\\\.4 .frames')"
    output = f"{slider}.closest('label').querySelector('output').textContent"
    assert "forecast" in run(output) or run(output) == "step 1"
    before = run(f"{slider}.closest('figure').querySelector('canvas').toDataURL()")
    run(f"{slider}.value = 2, {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    assert run(output).startswith("step ")
    assert run(f"{slider}.closest('figure').querySelector('canvas').toDataURL()") != before
    assert run(f"{slider}.getAttribute('aria-valuetext')") == run(output)


def test_the_dose_sliders_show_the_picture_and_the_losses_there(browser, page):
    run = see(browser, page)
    curves = results.read(PUBLISHED / "problem1")["parts"]["1.3"]["curves"]
    for kind, doses in (("shift", curves["shift_px"]), ("noise", curves["sigma"])):
        slider = f"document.querySelector('.doses input[data-kind={kind}]')"
        for place in (0, len(doses) - 1):
            run(f"{slider}.value = {place}, "
                f"{slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")  # fmt: skip
            assert float(run(f"{slider}.nextElementSibling.textContent")) == doses[place]
            cell = run(f"document.querySelector('.doses td[data-kind={kind}]').textContent")
            relative = next(iter(curves["weights"].values()))[kind]["relative"][place]
            assert float(cell.split()[0]) == pytest.approx(relative, rel=1e-3)
        style = f"document.querySelector('.copy-at[data-kind={kind}]')?.style.backgroundPositionX"
        if (PUBLISHED / "problem1" / "1.3_doses.jpg").is_file():
            tiles = len(curves["shift_px"]) + len(curves["sigma"]) - 1
            last = len(curves["shift_px"]) - 1 if kind == "shift" else tiles - 1
            assert float(run(style).rstrip("%")) == pytest.approx(100 * last / (tiles - 1))


def test_the_filter_shows_right_or_wrong_predictions(browser, page):
    run = see(browser, page)
    kinds = "[...document.querySelectorAll('#p2\\\\.6 > figure[data-kind]')]"
    kinds += ".filter((f) => !f.hidden).map((f) => f.dataset.kind)"
    kinds += ".filter((kind) => ['right', 'wrong'].includes(kind))"  # others show all images
    assert set(run(kinds)) == {"right", "wrong"}
    for kind in ("right", "wrong"):
        browser.find_element("css selector", f"#p2\\.6 input[value={kind}]").click()
        assert set(run(kinds)) == {kind}
    browser.find_element("css selector", "#p2\\.6 input[value=all]").click()
    assert set(run(kinds)) == {"right", "wrong"}


def test_commands_are_copied_and_the_theme_turns(browser, page):
    run = see(browser, page)
    browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    browser.find_element("css selector", "#p1\\.1 .copy").click()
    command = run("document.querySelector('#p1\\\\.1 .command code').textContent")
    assert browser.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
    ) == command  # fmt: skip
    back = "getComputedStyle(document.body).backgroundColor"
    light = run(back)
    canvas = "document.querySelector('figure.chart canvas').toDataURL()"
    drawn = run(canvas)
    browser.find_element("id", "theme").click()
    assert run(back) != light
    assert run(canvas) != drawn
    assert see(browser, page, theme="dark")(back) != light


def test_axe_finds_nothing_serious(browser, page):
    import axe_core_python

    browser.set_script_timeout(100)
    for theme in ("light", "dark"):
        see(browser, page, theme=theme)
        # Keep only the parts that cover all elements, and the first rows of long tables.
        browser.execute_script(
            """document.querySelectorAll("details, tr:nth-child(n+4), .part:not(#p1\\\\.3):not("
            + "#p2\\\\.6):not(#p3\\\\.4)").forEach((part) => part.remove())"""
        )
        browser.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
        found = browser.execute_async_script(
            "axe.run({resultTypes: ['violations']}).then(arguments[0])"
        )
        assert [
            (rule["id"], rule["nodes"][0]["html"][:200])
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
        ] == []


def test_a_fresh_clone_and_a_run_cut_short(browser, tmp_path):
    (page := tmp_path / "report.html").write_text(html.render(tmp_path), "utf-8")
    run = see(browser, page, 360)
    assert run("document.body.innerText.match(/Not run yet/g).length") == 13
    assert run("document.documentElement.scrollWidth") <= 360
    epoch = {"epoch": 1, "train_loss": 2.0, "val_loss": None, "train_top1": 1.0, "val_top1": None}
    networks = {"resnet36": {"test_top1": None, "runs": [{"seed": 0, "history": [epoch]}]}}
    (folder := tmp_path / "problem3").mkdir()
    results.publish(folder, "3.4", Findings({"networks": networks, "forecast": {}}), ABOUT)
    results._store(folder, results.read(folder) | {"files": {"3.1": ["3.1_x.txt"], "3.4": []}})
    page.write_text(html.render(tmp_path), "utf-8")
    run = see(browser, page)
    assert run("document.body.innerText.match(/Begun, and not finished/g).length") == 1
    assert run("[...document.querySelectorAll('figure.chart')].every((f) => f.dataset.drawn)")
    assert faults(browser) == []
