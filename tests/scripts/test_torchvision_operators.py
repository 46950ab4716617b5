"""The import hook with which a torchvision without compiled operators can be imported."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

DESCRIBE = """
import torch

@torch.library.register_fake("torchvision::{operator}")
def describe(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""


@pytest.fixture
def torchvision(tmp_path):
    """Writes a torchvision whose import works like the real one's, with or without compiled operators."""

    def write(has_ops, operators=("nms", "qnms")):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text("from . import extension\nfrom . import _meta_registrations\n")
        (package / "extension.py").write_text(f"def _has_ops():\n    return {has_ops}\n")
        describe = "".join(DESCRIBE.format(operator=operator) for operator in operators)
        (package / "_meta_registrations.py").write_text(describe)
        return tmp_path

    return write


def run_python(code, *folders):
    """Runs code in a new interpreter in which the hook is installed as by a `.pth` file."""
    path = [str(SCRIPTS), *map(str, folders)]
    prologue = f"import sys; sys.path[:0] = {path}; import torchvision_operators as hook; hook.install(); "
    # -S excludes a hook that the environment may have, and -I its variables. The packages are added by path.
    site_packages = [entry for entry in sys.path if entry.endswith("site-packages")]
    command = [sys.executable, "-I", "-S", "-c", f"{prologue}sys.path += {site_packages}; {code}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_missing_operators_are_declared(torchvision):
    code = "import torchvision, torch; print(torch.ops.torchvision.nms.default, torch.ops.torchvision.qnms.default)"
    result = run_python(code, torchvision(has_ops=False))
    assert result.stdout.split() == ["torchvision.nms.default", "torchvision.qnms.default"], result.stderr


def test_declared_operators_have_no_implementation(torchvision):
    code = "import torchvision, torch; torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    result = run_python(code, torchvision(has_ops=False))
    assert "Could not run 'torchvision::nms'" in result.stderr


def test_a_torchvision_with_its_own_operators_is_left_alone(torchvision):
    code = "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    result = run_python(code, torchvision(has_ops=True, operators=()))
    assert result.stdout.strip() == "False", result.stderr


def test_without_the_hook_the_import_fails(torchvision):
    """Shows why the hook is needed. If this fails, torch has changed and the hook may no longer be needed."""
    result = run_python("sys.meta_path.remove(hook.OperatorFinder); import torchvision", torchvision(has_ops=False))
    assert "operator torchvision::nms does not exist" in result.stderr


def test_torch_is_not_loaded_before_torchvision_is():
    result = run_python("import importlib.util as u; u.find_spec('torchvision'); print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_installing_twice_adds_one_finder():
    result = run_python("hook.install(); print(sys.meta_path.count(hook.OperatorFinder))")
    assert result.stdout.strip() == "1", result.stderr
