"""A headless browser for the tests that render the HTML report: `python3 tools/get_browser.py`.

Reports need no browser to be written, only the test that looks at one does. As root on a Debian-like
machine (a container, a CI runner) a missing one is installed; anywhere else a sentence says that the
test will be skipped. Nothing here fails: it runs on the plain Python that starts `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess

VARIABLE = "RECLOOM_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
INSTALL_SECONDS = 600


def find_browser() -> str | None:
    """Path of a Chromium-like browser that starts; None when there is none.

    The environment variable `RECLOOM_BROWSER` (a path or a name) wins over the usual names, also when
    it names nothing: then there is no browser.
    """
    chosen = os.environ.get(VARIABLE)
    for name in (chosen,) if chosen else NAMES:
        path = shutil.which(name)
        if path is not None and starts(path):
            return path
    return None


def starts(path: str) -> bool:
    """True when `path --version` succeeds: Ubuntu's `chromium-browser` without snap does not."""
    try:
        run = subprocess.run([path, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0


def can_install() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def install() -> str | None:
    """Install Debian's chromium; returns None, or why it failed in one line."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        command = ["apt-get", "-qq", *arguments]
        try:
            run = subprocess.run(
                command, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"`{' '.join(command)}`: {error}"
        if run.returncode:
            lines = run.stderr.decode(errors="replace").strip().splitlines()
            return f"`{' '.join(command)}`: {lines[-1] if lines else f'exit code {run.returncode}'}"
    return None


def obtain() -> str:
    """Find a browser, or install one where that is in order; returns the sentence to print."""
    browser, reason = find_browser(), ""
    if browser is None and not os.environ.get(VARIABLE) and can_install():
        print("browser: none found, installing chromium (about a minute, once)", flush=True)
        failure = install()
        browser = find_browser()
        reason = f" (the install failed: {failure})" if failure else " (the installed one does not start)"
    if browser is not None:
        return f"browser: {browser}"
    return (
        f"browser: none found{reason}, the report's browser test will be skipped: "
        f"install chromium, or set {VARIABLE} to a Chrome-like browser."
    )


def main() -> None:
    print(obtain(), flush=True)


if __name__ == "__main__":
    main()
