"""Which browser is taken, and that a machine without one gets a sentence, not an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.tools.get_browser import VARIABLE, find_browser, install, obtain


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that holds only what the test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_the_first_browser_that_starts(empty_path: Path) -> None:
    assert find_browser() is None
    program(empty_path, "chromium-browser", "echo 'install the snap'; exit 1")
    assert find_browser() is None
    chrome = program(empty_path, "google-chrome", "exit 0")
    assert find_browser() == str(chrome)


def test_the_variable_wins(empty_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(empty_path, "chromium", "exit 0")
    own = program(empty_path, "my-browser", "exit 0")
    monkeypatch.setenv(VARIABLE, str(own))
    assert find_browser() == str(own)
    assert obtain() == f"browser: {own}"
    monkeypatch.setenv(VARIABLE, "none")
    assert find_browser() is None


def test_a_failing_install_is_told_in_one_line(empty_path: Path) -> None:
    program(empty_path, "apt-get", "echo 'W: first' >&2; echo 'E: no network' >&2; exit 100")
    assert install() == "`apt-get -qq update`: E: no network"
    program(empty_path, "apt-get", 'test "$2" = update')
    assert install() == "`apt-get -qq install -y --no-install-recommends chromium`: exit code 1"


def test_the_script_never_fails(repo_root: Path) -> None:
    script = repo_root / "tools" / "get_browser.py"
    environment = {**os.environ, VARIABLE: "none"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "will be skipped" in done.stdout and len(done.stdout.splitlines()) == 1
