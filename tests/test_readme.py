"""What the README says is there: commands that parse, files that exist, a map that matches the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recloom.launcher.cli import parser

MADE_BY_USE = ("runs/",)


def command_lines(repo_root: Path) -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", (repo_root / "README.md").read_text(), re.M | re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_every_recloom_command_parses(repo_root: Path) -> None:
    lines = [line for line in command_lines(repo_root) if line.startswith("recloom ")]
    assert len(lines) >= 6
    for line in lines:
        parser().parse_args(line.split()[1:])


def test_make_targets_exist(repo_root: Path) -> None:
    makefile = (repo_root / "Makefile").read_text()
    targets = {word for line in command_lines(repo_root) for word in re.findall(r"^make ([\w-]+)", line)}
    assert {"quickstart", "test"} <= targets
    for target in targets | {"check", "format", "clean", "env", "test-all"}:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_named_files_exist(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text()
    named = re.findall(r"(?:configs|launcher|docs|data_shards|trainer)/[\w./-]+\w", text)
    assert named
    for name in named:
        if not name.startswith(MADE_BY_USE):
            assert (repo_root / name).exists() or list(repo_root.glob(f"*/{name}")), name


def test_folder_map_matches_the_tree(repo_root: Path) -> None:
    text = (repo_root / "README.md").read_text()
    mapped = set(re.findall(r"^\| `(\w+)/`", text, re.M))
    tracked = subprocess.run(["git", "ls-files"], cwd=repo_root, capture_output=True, text=True).stdout
    folders = {
        line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")
    }
    if not folders:
        pytest.skip("not a git checkout")
    assert mapped == folders


def test_ci_calls_make_test(repo_root: Path) -> None:
    assert "make test" in (repo_root / ".ci/run").read_text()


def test_a_wheel_holds_all_packages_and_data(repo_root: Path, tmp_path: Path) -> None:
    """Built from a copy, so that no build folder is left in the checkout."""
    import shutil
    import zipfile

    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns(
        ".venv", ".git", "runs", ".typecheck", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(repo_root, copy, ignore=ignore)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(copy),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = [
        path
        for folder in ("data_shards", "trainer", "launcher", "tools")
        for path in (repo_root / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".html"} and "__pycache__" not in path.parts
    ]
    missing = [path for path in wanted if f"recloom/{path.relative_to(repo_root)}" not in names]
    assert wanted and not missing
    assert not any(name.startswith(("kernels/", "trainer/")) for name in names)
