"""The documentation against the code: every flag with its names and default, every module in the map."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from duet_server.api.options import ServerOptions

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PACKAGES = (
    "server/duet_server",
    "server/duet_server/plan",
    "server/duet_server/engine",
    "server/duet_server/api",
    "duet_kernels",
    "training/duet_training",
    "benchmarks",
)


def test_configuration_lists_every_flag():
    lines = (DOCS / "configuration.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in lines if line.startswith("| `--duet-")]
    cells = {flag: [default, variable, key] for _, flag, default, variable, key, *_ in rows}
    boundaries = cells.pop("--duet-boundaries")
    assert boundaries == ["half and three quarters of the depth", "DUET_BOUNDARIES", "duet-boundaries"]
    expected = {}
    for option in fields(ServerOptions):
        key = f"duet-{option.name}".replace("_", "-")
        expected[f"--{key}"] = [option.metadata["default"], f"DUET_{option.name.upper()}", key]
    assert cells == expected


def listed_files(section: str) -> Iterator[Path]:
    """The files that a section of the map names; deeper lines lie in the folder above them."""
    text = (DOCS / "structure.md").read_text()
    body = text.split(f"\n### {section}\n", 1)[1].split("\n### ", 1)[0]
    folders: list[tuple[int, str]] = []
    for line in body.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.match(r"((?:[\w./-]+, )*[\w./-]+)(?:  |$)", line.strip())
        if not names or not 4 <= indent <= 8:
            continue
        folders = [(depth, folder) for depth, folder in folders if depth < indent]
        place = REPOSITORY.joinpath(section, *(folder for _, folder in folders))
        for name in names.group(1).split(", "):
            if name.endswith("/"):
                folders.append((indent, name))
            yield place / name


def test_the_map_names_every_module_and_no_other():
    listed = {path for package in PACKAGES for path in listed_files(package)}
    assert [str(path) for path in listed if not path.exists()] == []
    modules = {path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")}
    described = {path for path in modules if path.name != "__init__.py"}
    assert sorted(str(path.relative_to(REPOSITORY)) for path in described - listed) == []
