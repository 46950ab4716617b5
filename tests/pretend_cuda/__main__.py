"""Run pytest with a pretended H100: ``python tests/pretend_cuda [arguments of pytest]``.

The Python that runs this needs vLLM's CUDA build, which can be installed without a GPU. ``pretend_cuda/__init__.py``
describes what is pretended, and what a rehearsal does not show.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
STUBS = REPOSITORY / "build" / "pretend_cuda"
DRIVER = "libcuda.so.1"
NOT_INITIALIZED = 3  # every function of the stub returns this


def main() -> None:
    build_driver_stub()
    os.chdir(REPOSITORY)
    os.execve(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]], environment())


def build_driver_stub() -> None:
    """Build a stub of NVIDIA's driver, which no package has. Libraries link its functions but never call them."""
    source = "\n".join(f"int {name}(void) {{ return {NOT_INITIALIZED}; }}" for name in driver_functions())
    STUBS.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{DRIVER}", "-o", STUBS / DRIVER]
    subprocess.run(command, input=source, text=True, check=True)


def driver_functions() -> list[str]:
    """The driver's functions that vLLM's libraries and Triton link.

    Raises:
        SystemExit: if vLLM's CUDA build is not installed.
    """
    libraries = list(folder_of("vllm").rglob("*.so"))
    if not any(path.name.startswith("_vllm_fa3_C") for path in libraries):
        sys.exit(
            f"{sys.executable} does not hold vLLM's CUDA build; `make rehearse-gpu` installs one in build/rehearsal."
        )
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", *libraries], stdout=subprocess.PIPE, text=True, check=True
    )
    triton = (folder_of("triton") / "backends" / "nvidia" / "driver.c").read_text()
    return sorted({*re.findall(r" U (cu[A-Z]\w*)", symbols.stdout), *re.findall(r"\b(cu[A-Z]\w*)\(", triton)})


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("nowhere")


def environment() -> dict[str, str]:
    settings = {
        "TRITON_INTERPRET": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # would compile its kernels
        "OMP_NUM_THREADS": "1",
    }
    folders = {"PYTHONPATH": HERE, "LD_LIBRARY_PATH": STUBS}
    first = {
        name: os.pathsep.join(filter(None, [str(folder), os.environ.get(name)])) for name, folder in folders.items()
    }
    return {**settings, **os.environ, **first}


if __name__ == "__main__":
    main()
