"""pyproject.toml against the packages that it describes, and tests/conftest.py against the tests that it marks."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import duet_server
from tests import conftest

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["package-dir"]
TESTS = REPOSITORY / "tests"

# Every folder of code with the extras that its imports may come from, besides the dependencies of the package itself.
FOLDERS = {
    "server": [],
    "duet_kernels": [],
    "training": ["train"],
    "benchmarks": ["bench", "train"],
    "examples": ["bench", "test"],
    "tests": ["test", "bench", "train"],
}
# Imported name -> name of the distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
# The engine comes with the extra cpu or cuda. lmms-eval's command says which release to install.
UNDECLARED = {"vllm", "lmms-eval"}
# Our code does not import these: transformers imports accelerate, and pytest finds its plugins by itself.
UNIMPORTED = {"accelerate", "pytest-asyncio", "pytest-timeout", "pytest-xdist"}
# In this repository.
OURS = {*PACKAGES, "benchmarks", "scripts", "tests", "pretend_cuda"}
# A test file that imports one of these starts an engine.
STARTERS = {"tests.engine.in_process", "tests.serving.running_server"}


def imports_of_folder(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        yield from imports_of_file(path)


def imports_of_file(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative"
            yield node.module


def imported_distributions(folder: str) -> set[str]:
    names = {module.split(".")[0] for module in imports_of_folder(REPOSITORY / folder)}
    names -= sys.stdlib_module_names | OURS
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names}


def declared(*extras: str) -> list[str]:
    """Names of the distributions that the extras require; without extras, those that the package requires."""
    project = PROJECT["project"]
    groups = [project["optional-dependencies"][extra] for extra in extras] if extras else [project["dependencies"]]
    names = [re.match(r"[\w.-]+", requirement)[0] for group in groups for requirement in group]
    return [name for name in names if name != PROJECT["project"]["name"]]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder):
    everything = {*declared(), *declared(*FOLDERS[folder])}
    assert imported_distributions(folder) - everything - UNDECLARED == set()


def test_what_is_declared_is_imported():
    imported = {name for folder in FOLDERS for name in imported_distributions(folder)} | UNIMPORTED
    assert {*declared(), *declared("train", "bench", "test")} - imported == set()
    assert set(declared()) <= imported_distributions("server") | imported_distributions("duet_kernels")
    assert set(declared("train")) <= imported_distributions("training") | UNIMPORTED


def test_nothing_is_declared_twice():
    names = [*declared(), *declared("train", "bench", "test")]
    assert sorted(names) == sorted(set(names))


def test_plan_imports_the_standard_library_alone():
    modules = set(imports_of_folder(REPOSITORY / PACKAGES["duet_server"] / "plan"))
    others = {module for module in modules if module.split(".")[0] not in sys.stdlib_module_names}
    assert {module for module in others if not f"{module}.".startswith("duet_server.plan.")} == set()


def test_the_version_is_the_installed_ones():
    assert duet_server.__version__ == PROJECT["project"]["version"], "run make install"


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package):
    assert (REPOSITORY / PACKAGES[package] / "py.typed").read_text() == ""
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["*"]


def test_files_that_start_an_engine_are_marked():
    starters = {path for path in TESTS.rglob("test_*.py") if STARTERS & set(imports_of_file(path))}
    assert len(starters) > 10
    unmarked = {path for path in starters if "engine" not in conftest.marks(path.relative_to(TESTS).as_posix())}
    assert unmarked == set()


def test_tests_carry_their_marks(request):
    """All tests that this run has collected."""
    for item in request.session.items:
        path = item.path.relative_to(TESTS).as_posix()
        assert {mark.name for mark in item.iter_markers()} >= set(conftest.marks(path, item.originalname)), item.nodeid


@pytest.mark.parametrize("name", [*conftest.WITHOUT_ENGINE, *conftest.SLOW])
def test_files_that_conftest_names_are_there(name):
    file, _, test = name.partition("::")
    assert f"def {test}(" in (TESTS / file).read_text() if test else (TESTS / file).is_file()
