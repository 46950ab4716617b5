"""The parser of ``duet-server serve``: vLLM's parser, which also reads DUET's keys and suggests names after a typo."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from vllm.utils.argparse_utils import FlexibleArgumentParser

DUET_PREFIX = "duet-"
# Variables that Kubernetes sets in every container if a service's name begins with "duet".
_OF_A_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP)\w*)$")


class ServeParser(FlexibleArgumentParser):
    """Reads DUET's keys of a ``--config`` file as text, like environment variables.

    vLLM's parser would drop ``off``, which YAML reads as false, and would make a separate value of each list item.
    """

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        # vLLM's parser finds a config file only if --config and FILE are two words.
        pieces = (word.split("=", 1) if word.startswith("--config=") else [word] for word in args)
        return super().parse_args([piece for word in pieces for piece in word], namespace)

    def error(self, message: str) -> NoReturn:
        super().error(message + (_nearest_flags(message, self) if "unrecognized arguments" in message else ""))
        raise AssertionError("argparse ends the process")

    def load_config_file(self, file_path: str) -> list[str]:
        """The words of the command line that a config file replaces."""
        settings = {str(key).replace("_", "-"): value for key, value in self._read(file_path).items()}
        duet_settings = {key: settings.pop(key) for key in list(settings) if key.startswith(DUET_PREFIX)}
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as rest:
            yaml.safe_dump(settings, rest)
            argv: list[str] = super().load_config_file(rest.name)
        return [*argv, *(word for key, value in duet_settings.items() for word in (f"--{key}", as_text(value)))]

    def _read(self, file_path: str) -> dict[str, Any]:
        try:
            settings = yaml.safe_load(Path(file_path).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            self.error(f"--config {file_path} cannot be read: {' '.join(str(error).split())}")
        if not isinstance(settings, dict | None):
            self.error(f"--config {file_path} is not a mapping of options to values")
        return settings or {}


def as_text(value: object) -> str:
    """A YAML value as written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _nearest_flags(message: str, parser: argparse.ArgumentParser) -> str:
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser, *(choice for command in commands for choice in command.choices.values())]
    known = [flag for parser in parsers for flag in parser._option_string_actions]
    return "".join(nearest(word.split("=")[0], known) for word in message.split() if word.startswith("--"))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about ``name`` that suggests a similar known name; empty if there is none."""
    return "".join(f"; did you mean {match}?" for match in get_close_matches(name, list(known), n=1))


def unknown_variables(environment: Mapping[str, str], known: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that begins with ``DUET_`` but is not an option."""
    for name in sorted(set(environment) - set(known)):
        if name.startswith("DUET_") and not _OF_A_SERVICE.search(name):
            yield f"{name} in the environment is not an option of this server{nearest(name, known)}"
