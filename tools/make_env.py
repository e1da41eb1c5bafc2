"""Make `.venv` with the build that fits this machine: `python3 tools/make_env.py`.

vLLM's CPU build names torchvision, torchaudio and torchcodec as dependencies without using them
for text, and pip then fetches their CUDA builds (3.5 GB), which break the CPU build of torch at
import. Metadata-only wheels of these three, made here, take their place; on a GPU machine the
real ones are installed. The stamp is written last, so a broken install is never believed.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".venv"
STAMP = ENV / ".complete"
STUBS = {"torchvision": "0.28.0+stub", "torchaudio": "2.13.0+stub", "torchcodec": "0.14.0+stub"}


def stub_wheel(name: str, version: str, folder: Path) -> Path:
    """Write a wheel that holds metadata and no module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Summary: empty stand-in, RecLoom's CPU environment needs no media library\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: recloom\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def has_gpu() -> bool:
    """True when the NVIDIA driver answers for at least one device."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).stdout.startswith(b"GPU")


def check_python() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"make env: Python {version} is not supported, RecLoom needs 3.11 or 3.12: "
            "run `make env PYTHON=python3.11`."
        )


def has_pip() -> bool:
    """True when `.venv` was made whole: an interrupted creation leaves a Python without pip."""
    python = ENV / "bin" / "python"
    if not python.exists():
        return False
    return subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0


def install(device: str) -> None:
    """One pip call: the package in editable mode with its extras, stand-ins beside it on a CPU."""
    pip = [str(ENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    with tempfile.TemporaryDirectory() as folder:
        wheels: list[str] = []
        if device == "cpu":
            wheels = [str(stub_wheel(name, version, Path(folder))) for name, version in STUBS.items()]
        subprocess.run([*pip, "--progress-bar", "off", *wheels, "-e", f"{ROOT}[{device},dev]"], check=True)


def main() -> None:
    check_python()
    device = "gpu" if has_gpu() else "cpu"
    start = time.time()
    print(f"make env: building .venv with the {device} build (a few minutes, once)", flush=True)
    STAMP.unlink(missing_ok=True)
    try:
        if not has_pip():
            venv.create(ENV, with_pip=True, clear=True)
        install(device)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"make env: `{' '.join(map(str, error.cmd[:4]))} ...` failed, see above: check the network; on "
            "Debian and Ubuntu the package python3-venv is needed. The same command tries again."
        )
    STAMP.write_text(f"{device}\n")
    print(f"make env: ready in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
