"""Pages in a real Chromium: as a reader sees them, on a phone and a screen, by day and by night."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import a_comparison, a_diagnosis, a_fit_report, a_trainer_state
from sentence_transformers import SentenceTransformer

from st_asym.report import save_html

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Elements that stick out on the right, and are not in a box of their own that scrolls.
_STICKING_OUT = """
() => [...document.querySelectorAll('body *')]
    .filter(one => !one.parentElement.closest('.scroll')
        && one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
    .map(one => one.outerHTML.slice(0, 80))
"""
_NOT_LOADED = "() => [...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.alt)"
# Contrast of every text with the page behind it, as WCAG 2 defines it; the smallest, and where.
_CONTRAST = """
() => {
  const light = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3)
      .map(one => one / 255).map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const behind = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.endsWith(', 0)')) return light(colour);
    }
  };
  const found = [...document.querySelectorAll('h1, h2, p, b, td, th, caption, figcaption, summary, dt, dd, footer')]
    .map(one => {
      const pair = [light(getComputedStyle(one).color), behind(one)].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), one.outerHTML.slice(0, 80)];
    });
  return found.sort((a, b) => a[0] - b[0])[0];
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_of_everything(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    encoder = SentenceTransformer(str(tiny_bert), device="cpu")
    subjects = a_comparison(), a_fit_report(), a_diagnosis(encoder, folder), a_trainer_state()
    save_html(folder / "report.html", *subjects)
    return folder / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_reader_sees_everything(chromium: Any, page_of_everything: Path, width: int, theme: str) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_of_everything.as_uri(), wait_until="load")
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in requests) == 1

    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.images.length") > 15
    assert page.evaluate(_NOT_LOADED) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(_STICKING_OUT) == []

    dark = page.evaluate("[...document.images].filter(o => o.currentSrc === o.previousElementSibling.srcset).length")
    assert dark == (page.evaluate("document.images.length") if theme == "dark" else 0)
    contrast, where = page.evaluate(_CONTRAST)
    assert contrast >= 4.5, where
    context.close()
