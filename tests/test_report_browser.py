"""The report of the committed records and notebooks, in headless Chromium; without a browser only its links."""

from types import SimpleNamespace

import pytest
from browser import chromium, console_errors
from test_report import Links, broken_links

from xai_lib import report


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder of the report, without fresh results."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "results").mkdir()
    built = report.build(folder / "site", folder / "results")
    assert built.problems == []
    return built.folder


@pytest.fixture(scope="module")
def seen(site):
    """What one browser session finds: console errors and widths of every page, the filter's rows, an opened picture."""
    found = SimpleNamespace(errors={}, wide={}, broken={}, rows=[], colours=[])
    with chromium() as driver:
        for page in sorted(site.glob("*.html")):
            driver.get(page.as_uri())
            found.errors[page.name] = console_errors(driver)
            script = (
                "return [...document.images].filter(i => (i.loading = 'eager', i.complete && !i.naturalWidth)).length"
            )
            found.broken[page.name] = driver.execute_script(script)
        driver.get((site / "index.html").as_uri())
        found.colours.append(background(driver))
        for name, value in (("study", "03"), ("verdict", "does not hold")):
            driver.execute_script(
                "const s = document.querySelector(`[name=${arguments[0]}]`); s.value = arguments[1];"
                "s.dispatchEvent(new Event('change', {bubbles: true}))",
                name,
                value,
            )
        found.rows = driver.execute_script(
            "return [...document.querySelectorAll('#ledger tr[data-verdict]')].filter(r => r.offsetParent)"
            ".map(r => [r.parentElement.dataset.study, r.dataset.verdict])"
        )
        found.status = driver.find_element("id", "shown").text
        driver.get((site / "index.html").as_uri() + "?study=05#claims")
        found.linked = driver.execute_script(
            "return [...document.querySelectorAll('#ledger tbody')].filter(b => !b.hidden).map(b => b.dataset.study)"
        )
        driver.get((site / "03_ultrasound_cam_pointing_game.html").as_uri())
        picture = driver.find_element("css selector", ".gallery a")
        found.thumb = driver.execute_script(
            "const i = arguments[0].querySelector('img'); i.loading = 'eager';"
            "return i.decode().then(() => i.naturalWidth)",
            picture,
        )
        driver.execute_script("arguments[0].click()", picture)
        found.opened = driver.execute_script("return [location.pathname, document.images[0].naturalWidth]")
    with chromium((375, 740), dark=True) as driver:
        for page in sorted(site.glob("*.html")):
            driver.get(page.as_uri())
            found.wide[page.name] = driver.execute_script("return document.documentElement.scrollWidth")
        driver.get((site / "index.html").as_uri())
        found.colours.append(background(driver))
    return found


def background(driver):
    return driver.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_every_link_of_the_real_report_resolves(site):
    assert broken_links(site) == []


def test_every_image_is_described_and_nothing_is_loaded_from_a_network(site):
    for page in site.glob("*.html"):
        found = Links(page.read_text())
        assert all(image.get("alt") for image in found.images), page.name
        assert not [a for a in found.loaded if a.startswith(("http", "//"))], page.name


def test_no_page_has_a_console_error_or_a_broken_image(seen):
    assert {name: errors for name, errors in seen.errors.items() if errors} == {}
    assert {name: count for name, count in seen.broken.items() if count} == {}


def test_the_filter_leaves_the_rows_that_fit(seen):
    assert seen.rows and all(row == ["03", "does not hold"] for row in seen.rows)
    assert seen.status.startswith(f"{len(seen.rows)} of ")


def test_a_link_to_the_ledger_of_one_study_filters_it(seen):
    assert seen.linked and set(seen.linked) == {"05"}


def test_no_page_is_wider_than_a_phone(seen):
    assert {name: width for name, width in seen.wide.items() if width > 375} == {}


def test_dark_pages_have_another_background(seen):
    assert seen.colours[0] == "rgb(255, 255, 255)" and seen.colours[1] != seen.colours[0]


def test_a_thumbnail_opens_the_picture_in_full_size(seen):
    path, width = seen.opened
    assert "/figures/03_" in path and "/small/" not in path and width > seen.thumb > 0
