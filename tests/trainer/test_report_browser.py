"""The report as a real headless browser shows it, on a desktop and on a phone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).parent))

from browser import DARK, measure_page, screenshot
from run_folder import read_rows, write_run_folder

from recloom.tools.get_browser import find_browser
from recloom.trainer.report.html import write_report


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run_folder(tmp_path_factory.mktemp("run"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> str:
    found = find_browser()
    if found is None:
        pytest.skip("needs a Chromium-like browser: `python tools/get_browser.py` gets one")
    return found


def shown_results(tables: list[list[list[str]]]) -> dict[tuple[str, str, str], str]:
    """Cells of the page's results tables by task with backbone, method, metric."""
    found, title = {}, ""
    for header, *lines in tables:
        for line in lines:
            if len(line) == 1:
                title = line[0]
            else:
                found.update(
                    {(title, line[0], name): cell for name, cell in zip(header[1:], line[1:], strict=True)}
                )
    return found


def test_browser_shows_the_measurements(run_folder: Path, browser: str, tmp_path: Path) -> None:
    measured = measure_page(browser, run_folder / "report" / "index.html", [1100, 400], tmp_path)
    rows = read_rows(run_folder)
    want = {
        (f"{each['task']}, {each['backbone']}", each["method"], each["metric"]): f"{each['value']:.4f}"
        for each in rows
        if each["metric"] != "invalid_rate" and each["method"] not in ("Ceiling", "Ceiling+DA")
    }
    for view, width in zip(measured, (1100, 400), strict=True):
        assert shown_results(view["results"]) == want
        for each in rows:
            if each["method"].startswith("Ceiling"):
                assert f"{each['value']:.4f}" in view["text"]
        invalid = {(line[0], line[1]): line[3] for line in view["invalid"][1:]}
        assert invalid == {
            (each["method"], each["task"]): f"{each['value']:.4f}"
            for each in rows
            if each["metric"] == "invalid_rate"
        }
        assert ["users", "200", "943"] in view["card"]
        assert view["best"] and all(int(weight) >= 600 for weight in view["best"])
        assert len(view["plots"]) == 5 and all(w > 250 and h > 150 for w, h in view["plots"])
        assert all("Llama4Rec" in text for text in view["plot_text"][:3])
        assert view["width"] == width and view["content_width"] <= width, "nothing sticks out"
        assert view["loaded"] == []


def test_pictures_are_not_blank(run_folder: Path, browser: str, tmp_path: Path) -> None:
    page = run_folder / "report" / "index.html"
    light = imread(screenshot(browser, page, tmp_path / "light.png", 1100, 3000))[..., :3]
    dark = imread(screenshot(browser, page, tmp_path / "dark.png", 400, 3000, DARK))[:, :400, :3]
    assert light.shape[:2] == (3000, 1100)
    assert light.mean() > 0.8 and dark.mean() < 0.3
    for picture in (light, dark):
        counts = np.bincount((picture * 15).round().astype(np.int64).reshape(-1, 3) @ [256, 16, 1])
        assert (counts > 0).sum() > 50 and counts.max() < 0.97 * counts.sum()
    orange = np.abs(light - np.array([0xE6, 0x9F, 0x00]) / 255).max(axis=-1) < 0.02
    assert orange.sum() > 300, "the lines of the plots are drawn"
