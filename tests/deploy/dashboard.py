"""The dashboard's panels, and the series in their queries, for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).parents[2] / "deploy"
PATH = DEPLOY / "grafana" / "duet-server.json"

_NOT_NAMES = (
    r'"(?:[^"\\]|\\.)*"',  # texts
    r"\{[^}]*\}",  # label matchers
    r"\[[^]]*\]",  # ranges
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",  # lists of labels
)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")  # a name before a parenthesis is a function
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "by", "without"}


def dashboard() -> dict[str, Any]:
    return json.loads(PATH.read_text())


def panels() -> list[dict[str, Any]]:
    """All panels that show something, that is, all except rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Every panel's title with each of its expressions."""
    return [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]


def substituted(expression: str, variables: Mapping[str, str]) -> str:
    """The expression with its ``$variables`` filled in.

    Raises:
        KeyError: if a variable has no value.
    """
    return re.sub(r"\$(\w+)", lambda match: variables[match[1]], expression)


def series_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    for pattern in _NOT_NAMES:
        expression = re.sub(pattern, " ", expression)
    numberless = re.sub(r"(?<![\w:])\d[\w.]*", " ", expression)
    return set(_NAME.findall(numberless)) - _WORDS
