"""What we take over from vLLM, compared with what the pinned release had when our code was written against it.

An upgrade fails here first, and in one list: ``python -m pytest tests/vllm_interface`` starts no engine. The page
docs/upgrading_vllm.md says of every name in these tables why we lean on it, and what breaks without an error.

The tables hold one row per name: a dotted path, and below it, indented, what is expected. Annotations and defaults are
written as in vLLM's source. A failure shows the new text, ready to be pasted here once our side follows it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import vllm

from tests.vllm_interface.expectations import (
    ABSENT,
    ARGUMENTS,
    ATTRIBUTES,
    DATACLASSES,
    ENVIRONMENT,
    SOURCE,
    VALUES,
)
from tests.vllm_interface.signatures import SIGNATURES

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = REPOSITORY / "server" / "duet_server"
VLLM = Path(vllm.__file__).parent
PAGE = REPOSITORY / "docs" / "upgrading_vllm.md"


def rows(table: str) -> Iterator[tuple[str, list[str]]]:
    """Each row's first line, and the lines that are indented below it."""
    name, lines = "", []
    for line in table.splitlines():
        if line.startswith(" "):
            lines.append(line.strip())
        elif line and not line.startswith("#"):
            if name:
                yield name, lines
            name, lines = line, []
    yield name, lines


@cache
def resolve(path: str) -> Any:
    """What a dotted path names."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not path.startswith(error.name or "?"):
                raise  # something that the module itself imports
            continue
        for part in parts[length:]:
            found = found[part] if isinstance(found, dict) and part in found else getattr(found, part)
        return found
    raise ModuleNotFoundError(path)


def file_of(path: str) -> str:
    """The file of the module in which a dotted path begins, such as ``vllm/config/vllm.py``."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        place = VLLM.parent.joinpath(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file.relative_to(VLLM.parent).as_posix()
    return ""


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def signature(path: str) -> str:
    """Parameters and return type as the source has them: resolved types would change with other packages."""
    source = inspect.getsource(inspect.unwrap(resolve(path)))
    (function,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), f"{path} is no function"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({ast.unparse(function.args)}){returns}"


def attributes(path: str) -> set[str]:
    """Names of a class: defined, annotated, or assigned to ``self`` by any of its methods."""
    bases = resolve(path).__mro__
    found = {name for base in bases for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    for base in bases:
        if base.__module__.startswith("vllm."):
            nodes = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base))))
            stored = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
            found |= {node.attr for node in stored if ast.unparse(node.value) == "self"}
    return found


def fields(path: str) -> set[str]:
    return {field.name for field in dataclasses.fields(resolve(path))}


def compare_signature(found: str, expected: str) -> Iterator[str]:
    if squeeze(found) != squeeze(expected):
        shown = textwrap.fill(found, 116, break_long_words=False, break_on_hyphens=False)
        yield f"the signature is now\n{textwrap.indent(shown, '    ')}"


def compare_attributes(found: set[str], expected: str) -> Iterator[str]:
    yield from (f"has no {name}" for name in sorted(set(expected.split()) - found))


def compare_fields(found: set[str], expected: str) -> Iterator[str]:
    yield from (f"has lost the field {name}" for name in sorted(set(expected.split()) - found))
    yield from (f"has the new field {name}" for name in sorted(found - set(expected.split())))


def compare_value(found: Any, expected: str) -> Iterator[str]:
    if squeeze(repr(found)) != squeeze(expected):
        yield f"the value is now {found!r}"


def changed_rows() -> Iterator[str]:
    for table, read, compare in (
        (SIGNATURES, signature, compare_signature),
        (ATTRIBUTES, attributes, compare_attributes),
        (DATACLASSES, fields, compare_fields),
        (VALUES, resolve, compare_value),
    ):
        for path, lines in rows(table):
            try:
                found: Any = read(path)
            except Exception as error:
                yield not_found(path, error)
            else:
                yield from (f"{path}: {difference}" for difference in compare(found, " ".join(lines)))


def not_found(path: str, error: Exception) -> str:
    """A sentence, with the files in which vLLM defines something of the same name now."""
    name = re.escape(path.split(".")[-1])
    definition = re.compile(rf"^\s*(?:async def|def|class) {name}\b|^{name}\b.*=", re.MULTILINE)
    files = sorted(file for file, text in vllm_source().items() if definition.search(text))
    elsewhere = "".join(f"\n    same name in {file}" for file in files[:5])
    return f"{path}: not found ({type(error).__name__}: {error}){elsewhere}"


@cache
def vllm_source() -> dict[str, str]:
    """The text of every file of vLLM, read only if something is missing."""
    files = VLLM.rglob("*.py")
    return {file.relative_to(VLLM.parent).as_posix(): file.read_text(errors="ignore") for file in files}


def changed_source() -> Iterator[str]:
    for table, is_expected in ((SOURCE, True), (ABSENT, False)):
        for file, lines in rows(table):
            if not (VLLM.parent / file).is_file():
                yield f"{file}: the file is gone"
                continue
            text = squeeze((VLLM.parent / file).read_text())
            changed = [line for line in lines if (squeeze(line) in text) != is_expected]
            yield from (f"{file}: {'no longer' if is_expected else 'now'} has: {line}" for line in changed)


def changed_options() -> Iterator[str]:
    from vllm import envs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    options = {action.dest for action in make_arg_parser(FlexibleArgumentParser())._actions}
    yield from (f"vllm serve: has no option {name}" for name in sorted(set(ARGUMENTS.split()) - options))
    variables = set(envs.environment_variables)
    yield from (f"vllm.envs: has no variable {name}" for name in sorted(set(ENVIRONMENT.split()) - variables))


def changed_metrics() -> Iterator[str]:
    """Metrics of vLLM that the dashboard, the alerts and the benchmarks read."""
    files = [*(REPOSITORY / "deploy").rglob("*.*"), *(REPOSITORY / "benchmarks").rglob("*.py")]
    read = {name for file in files for name in re.findall(r"\bvllm:\w+", file.read_text())}
    source = "".join(file.read_text() for file in (VLLM / "v1").rglob("*.py"))
    defined = set(re.findall(r"\bvllm:\w+", source))
    for name in sorted(read):
        if not {name, re.sub(r"_(bucket|count|sum|total)$", "", name)} & defined:
            yield f"deploy/ or benchmarks/ read the metric {name}, which vLLM no longer has"


def missing_imports() -> Iterator[str]:
    # Compiled modules differ from build to build.
    for name, file in {name: file for file, name in imported_names() if "_C" not in name}.items():
        try:
            resolve(name)
        except Exception as error:
            yield f"{file.relative_to(REPOSITORY)} imports {not_found(name, error)}"


def imported_names() -> Iterator[tuple[Path, str]]:
    """Every dotted name of vLLM that our code imports, with the file of ours."""
    for folder in ("server", "training", "benchmarks", "examples", "tests"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                    yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                    yield from ((file, name) for name in names if name.startswith("vllm."))


def test_vllm_is_as_we_know_it():
    """All differences at once; docs/upgrading_vllm.md says what each of them means."""
    problems: list[str] = []
    for check in (missing_imports, changed_rows, changed_source, changed_options, changed_metrics):
        try:
            problems += check()
        except Exception as error:
            problems.append(f"{check.__name__} cannot run: {type(error).__name__}: {error}")

    assert not problems, f"vLLM {vllm.__version__} differs in {len(problems)} places:\n\n" + "\n".join(problems)


def our_classes() -> list[type]:
    """Every class of the server, the runners, and what ``segment_backend`` makes of each attention backend."""
    package = importlib.import_module("duet_server")
    modules = [importlib.import_module(info.name) for info in pkgutil.walk_packages(package.__path__, "duet_server.")]
    classes = [cls for module in modules for cls in vars(module).values() if isinstance(cls, type)]
    backends = resolve("vllm.v1.attention.backends.registry.AttentionBackendEnum")
    for name in resolve("duet_server.engine.attention.BACKENDS"):
        backend = resolve("duet_server.engine.attention.segment_backend")(backends[name].get_class())
        classes += [backend, backend.get_builder_cls(), backend.get_impl_cls()]
    for name in ("gpu_model_runner.GPUModelRunner", "cpu_model_runner.CPUModelRunner"):
        hooks, runner = resolve("duet_server.engine.runner_v1.PlansMixin"), resolve(f"vllm.v1.worker.{name}")
        classes.append(type("Runner", (hooks, runner), {}))
    return [*classes, *served_classes()]


def served_classes() -> Iterator[type]:
    """What is put in front of vLLM's classes for every architecture: model, processor and processing info."""
    mixins = [resolve(f"duet_server.engine.processor.{name}") for name in ("DuetProcessor", "DuetProcessingInfo")]
    for architecture in resolve("duet_server.engine.backbones.table.BACKBONES"):
        yield resolve(f"duet_server.engine.served.{architecture}")
        factories = resolve("duet_server.engine.served._vllm_class")(architecture)._processor_factory
        for mixin, factory in zip(mixins, (factories.processor, factories.info), strict=True):
            if isinstance(factory, type):
                yield type("Served", (mixin, factory), {})


def our_file(member: Any) -> Path | None:
    """The file of the server in which a class's member is defined; None for anything but a function of ours."""
    function = getattr(member, "__func__", getattr(member, "fget", member))
    function = inspect.unwrap(function) if callable(function) else function
    file = Path(function.__code__.co_filename) if isinstance(function, FunctionType) else None
    return file if file is not None and file.is_relative_to(SERVER) else None


@pytest.fixture(scope="module")
def overridden() -> dict[str, Path]:
    """The methods of vLLM that a method of ours overrides, with the file of ours."""
    found = {}
    for cls in our_classes():
        for place, ours in enumerate(cls.__mro__):
            theirs = [base for base in cls.__mro__[place + 1 :] if base.__module__.startswith("vllm.")]
            for name, member in vars(ours).items():
                file, base = our_file(member), next((base for base in theirs if name in vars(base)), None)
                if file is not None and base is not None:
                    found[f"{base.__module__}.{base.__qualname__}.{name}"] = file
    return found


def test_every_override_is_in_the_table(overridden):
    assert len(overridden) > 60, f"classes are no longer found: {overridden}"
    missing = sorted(set(overridden) - {path for path, _ in rows(SIGNATURES)})

    assert not missing, "without a row in SIGNATURES:\n" + "\n".join(missing)


def test_the_page_names_everything(overridden):
    tables = {table: list(rows(table)) for table in (SIGNATURES, ATTRIBUTES, DATACLASSES, VALUES)}
    names, files = {*ENVIRONMENT.split(), *ARGUMENTS.split()}, set()
    for path in [path for table in tables.values() for path, _ in table]:
        *_, owner, name = path.removesuffix(".value").split(".")
        names |= {name, owner} if owner[0].isupper() else {name}
        files.add(file_of(path))
    names |= {name for _, lines in tables[ATTRIBUTES] for name in " ".join(lines).split()}
    files |= {file for table in (SOURCE, ABSENT) for file, _ in rows(table)}
    importing = {file for file, _ in imported_names() if REPOSITORY / "tests" not in file.parents}
    files |= {file.relative_to(REPOSITORY).as_posix() for file in {*importing, *overridden.values()}}

    page = PAGE.read_text()
    missing = sorted(names - set(re.findall(r"\w+", page))) + sorted(file for file in files if file not in page)
    assert not missing, "docs/upgrading_vllm.md does not name:\n" + "\n".join(missing)
