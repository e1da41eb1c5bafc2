"""A page as a headless browser shows it: what its DOM holds and measures, and pictures of it.

The page is put into frames of the asked widths, so that narrow ones are possible too (a browser window
has a least width), and a script beside the frames reports what came out.
"""

from __future__ import annotations

import base64
import html
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DARK = "--blink-settings=preferredColorScheme=0"
SCRIPT = """
function cells(table) {
  return [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()));
}
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const boxes = [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect());
  return {
    width: view.innerWidth,
    content_width: page.documentElement.scrollWidth,
    plots: boxes.map(box => [box.width, box.height]),
    plot_text: [...page.querySelectorAll("figure svg")].map(svg => svg.textContent),
    results: [...page.querySelectorAll("table.results")].map(cells),
    best: [...page.querySelectorAll("td.best")].map(cell => getComputedStyle(cell).fontWeight),
    invalid: cells(page.querySelector("#invalid")),
    card: cells(page.querySelector("#card")),
    text: page.body.innerText,
    loaded: view.performance.getEntriesByType("resource").map(entry => entry.name),
  };
}
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(measure);
  const bytes = new TextEncoder().encode(JSON.stringify(found));
  const text = Array.from(bytes, byte => String.fromCharCode(byte)).join("");
  document.getElementById("found").textContent = "found:" + btoa(text) + ":end";
});
"""


def run_browser(browser: str, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure_page(browser: str, page: Path, widths: list[int], folder: Path) -> list[dict[str, Any]]:
    """What the page shows at every width, from the DOM of a real browser."""
    source = html.escape(page.read_text(), quote=True)
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{source}"></iframe>' for width in widths)
    harness = folder / "harness.html"
    harness.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><script>{SCRIPT}</script>{frames}<pre id="found"></pre>'
    )
    dom = run_browser(browser, "--dump-dom", harness.as_uri())
    found = re.search(r"found:([A-Za-z0-9+/=]+):end", dom)
    assert found is not None, dom[-2000:]
    result: list[dict[str, Any]] = json.loads(base64.b64decode(found[1]))
    return result


def screenshot(browser: str, page: Path, picture: Path, width: int, height: int, *flags: str) -> Path:
    """A picture of the page's upper part at a width, in a frame: narrow pages have room around them."""
    frame = picture.with_suffix(".frame.html")
    source = html.escape(page.read_text(), quote=True)
    style = f"width:{width}px;height:{height}px;border:0;display:block"
    frame.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<body style="margin:0"><iframe style="{style}" srcdoc="{source}"></iframe>'
    )
    size = f"--window-size={max(width, 500)},{height}"
    run_browser(browser, *flags, size, f"--screenshot={picture}", frame.as_uri())
    return picture
