"""The report in a real browser: charts are there, no script fails, nothing is requested."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.scoring.made_up import made_up
from tests.scoring.test_page import HOSTILE

from kdpipe.scoring.page import render_page
from kdpipe.stages.report import write_report
from kdpipe.stages.report_posteriors import PosteriorSettings

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = 1280, 390
# Loads the page in frames of both widths and writes what it measures where --dump-dom shows it.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe src="report.html" width="1280" height="900"></iframe>
<iframe src="report.html" width="390" height="800"></iframe>
<script>
addEventListener("load", function () {
  document.body.dataset.widths = Array.from(document.querySelectorAll("iframe"), (frame) =>
    frame.contentDocument.documentElement.scrollWidth).join(" ");
  document.body.dataset.charts = Array.from(document.querySelectorAll("iframe"), (frame) =>
    Array.from(frame.contentDocument.querySelectorAll("section.part svg")).filter((svg) =>
      svg.closest("[hidden], details:not([open])") === null
      && svg.getBoundingClientRect().height < 8).length).join(" ");
});
</script>"""
Load = Callable[[Path], str]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The DOM of a page after its scripts ran."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser is installed: apt-get install chromium to run this test")

    def dump(page: Path) -> str:
        profile = tmp_path_factory.mktemp("profile")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--allow-file-access-from-files", f"--user-data-dir={profile}",
            f"--window-size={DESKTOP},900", "--dump-dom", page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=300, check=True)
        return done.stdout.decode("utf-8")

    return dump


@pytest.fixture(scope="module", params=["pipeline", "hostile"])
def page(
    request: pytest.FixtureRequest, report_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A report of real runs, and one whose every string tries to be markup."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    if request.param == "hostile":
        out.write_text(render_page(made_up(lambda text: text + HOSTILE)), encoding="utf-8")
    else:
        write_report([report_runs], out, (), PosteriorSettings(2, 8, "cpu"))
    return out


def test_the_page_loads_without_an_error_or_a_request(load: Load, page: Path) -> None:
    dom = load(page)
    (root,) = re.findall(r"<html[^>]*>", dom)
    assert 'data-ready="yes"' in root
    assert 'data-errors=""' in root
    assert 'data-requests="0"' in root
    assert dom.count("<svg") > 20
    for name in ("results", "rates", "training", "speed", "lengths", "worst", "store",
                 "confidence", "posteriors"):  # fmt: skip
        assert f'<section id="{name}"' in dom
    assert dom.count('role="tab"') >= 4
    assert "hidden" in dom


def test_a_request_would_be_seen(load: Load, page: Path) -> None:
    """The test above can fail: what the page's policy blocks is written down."""
    wrong = page.with_name("wrong.html")
    content = page.read_text(encoding="utf-8").replace(
        "<h1>", '<img src="http://localhost:9/a.png"><script>boom()</script><h1>', 1
    )
    wrong.write_text(content, encoding="utf-8")
    (root,) = re.findall(r"<html[^>]*>", load(wrong))
    assert "blocked: img-src http://localhost:9/a.png" in root
    assert "blocked: script-src-elem inline" in root


def test_the_page_fits_a_desk_and_a_phone(load: Load, page: Path) -> None:
    """Nothing makes the page scroll sideways, and every chart that is open has a height."""
    frames = page.with_name("frames.html")
    frames.write_text(MEASURE, encoding="utf-8")
    (body,) = re.findall(r"<body[^>]*>", load(frames))
    (widths,) = re.findall(r'data-widths="(\d+) (\d+)"', body)
    assert int(widths[0]) <= DESKTOP
    assert int(widths[1]) <= PHONE
    assert 'data-charts="0 0"' in body
