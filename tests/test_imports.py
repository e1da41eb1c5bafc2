"""The import name, and that our `kernels/` folder never shadows the package transformers probes for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("data_shards", "kernels", "trainer", "launcher", "tools")
LAYERS = {"data_shards": 0, "kernels": 0, "trainer": 1, "launcher": 2, "tools": 2}


@pytest.mark.parametrize("package", ["transformers", "deepspeed", "vllm"])
def test_engines_import_with_the_repository_root_on_the_path(repo_root: Path, package: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(repo_root)!r}); import {package}; print({package}.__version__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_init_files(repo_root: Path) -> None:
    found = [path for folder in FOLDERS for path in (repo_root / folder).rglob("__init__.py")]
    assert found == []


def sources(repo_root: Path) -> list[tuple[str, Path]]:
    return [(folder, path) for folder in FOLDERS for path in sorted((repo_root / folder).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of all imports, `recloom.x.y` kept whole."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module}
    return names


def test_imports_go_downwards_only(repo_root: Path) -> None:
    """launcher, tools -> trainer -> data_shards, kernels."""
    wrong = []
    for folder, path in sources(repo_root):
        for name in imported(path):
            other = name.split(".")[1] if name.startswith("recloom.") else folder
            sideways = LAYERS[other] == LAYERS[folder] == 0 and other != folder
            if LAYERS[other] > LAYERS[folder] or sideways:
                wrong.append(f"{path.relative_to(repo_root)} imports {name}")
    assert wrong == []


def test_one_module_knows_each_engine(repo_root: Path) -> None:
    for engine, owner in (("deepspeed", "trainer/engine.py"), ("vllm", "launcher/bulk.py")):
        users = {
            str(path.relative_to(repo_root))
            for _, path in sources(repo_root)
            if any(name.split(".")[0] == engine for name in imported(path))
        }
        assert users == {owner}


def test_systems_do_not_import_each_other(repo_root: Path) -> None:
    systems = [path.name for path in (repo_root / "trainer/systems").iterdir() if path.is_dir()]
    for system in systems:
        for path in (repo_root / "trainer/systems" / system).rglob("*.py"):
            others = [name for name in imported(path) if name.startswith("recloom.trainer.systems.")]
            assert all(name.split(".")[3] == system for name in others), path
