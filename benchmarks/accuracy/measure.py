"""Measures a checkpoint: starts one server after another, one for each stage-1 selection, and asks it all questions."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.endpoint import Endpoint, open_session
from benchmarks.accuracy.methods import (
    DUET,
    METHODS,
    OFF,
    UNCOMPRESSED,
    Setting,
    boundaries_for,
    described_shape,
    settings_for,
)
from benchmarks.accuracy.questions import Question
from benchmarks.accuracy.scoring import accuracy, minus
from benchmarks.accuracy.selection import OWN, plugin_environment, says_in_log
from benchmarks.accuracy.sweep import points, say, sweep
from benchmarks.servers import running_process

# Without these caches, every picture is new to the server under every setting.
FLAGS = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0", "--limit-mm-per-prompt", '{"image": 1}')
SIZES = ("--max-model-len", "2048", "--max-num-batched-tokens", "4096")

Visit = dict[str, Any]  # a server's facts, its points, and the settings that it cannot serve


def measure_endpoint(args: argparse.Namespace, questions: Sequence[Question]) -> Visit:
    """Measure the server at ``--base-url``. Its stage 1 cannot be replaced."""
    return compared(questions, [asyncio.run(_ask(args, args.base_url, OWN, questions))])


def measure_checkpoint(args: argparse.Namespace, checkpoint: str, questions: Sequence[Question], log: Path) -> Visit:
    """Measure duet-server with a checkpoint, started once for each selection.

    Raises:
        RuntimeError: if a server does not start, does not use its selection, or refuses a request.
    """
    visits = []
    for selection in args.selections:
        say(f"starting a server with {checkpoint}, stage 1: {selection}")
        start = log.stat().st_size if log.exists() else 0
        with running_process(_command(args, checkpoint), log, **plugin_environment(selection)) as url:
            _check_selection(selection, log, start)
            visits.append(asyncio.run(_ask(args, url, selection, questions)))
    return compared(questions, visits)


def compared(questions: Sequence[Question], visits: Sequence[Visit]) -> Visit:
    """Join all visits, and compare every point with the first uncompressed one and with DUET at the same budget.

    ``kept`` is a point's share of the uncompressed accuracy, and ``lead`` its accuracy minus DUET's. Their standard
    errors come from the differences between the two scores of each question.
    """
    found = [point for visit in visits for point in visit["points"]]
    scores = [point.pop("scores") for point in found]
    methods = [(point["method"], point["share"]) for point in found]
    off = methods.index((OFF, 1.0))
    whole = found[off]["accuracy"]["mean"]
    for point, point_scores in zip(found, scores, strict=True):
        kept = point["accuracy"]["mean"] / whole if whole else None
        point |= {"kept": kept, "kept_error": None, "lead": None}
        if kept is not None:
            point["kept_error"] = accuracy(questions, minus(point_scores, scores[off], kept))["standard_error"] / whole
        if (duet := (DUET, point["share"])) in methods:
            point["lead"] = accuracy(questions, minus(point_scores, scores[methods.index(duet)]))
    left_out = [line for visit in visits for line in visit["left_out"]]
    return {**visits[0], "points": found, "left_out": left_out}


async def _ask(args: argparse.Namespace, url: str, selection: str, questions: Sequence[Question]) -> Visit:
    """Ask one server under every setting that it can serve, ``off`` first."""
    async with open_session(url, os.environ.get("OPENAI_API_KEY")) as session:
        endpoint = await Endpoint.connect(session, args.concurrency)
        settings, about = _settings(endpoint.description, selection, args.shares)
        sizes = {"num_blocks": args.blocks, "num_warmup": args.concurrency, "seed": args.seed}
        measured = await sweep(endpoint, questions, settings, **sizes)
    found = [{"selection": selection, **point} for point in points(questions, measured)]
    return {"model": endpoint.model, **about, "points": found}


def _settings(description: Mapping[str, Any], selection: str, shares: Sequence[float]) -> tuple[list[Setting], Visit]:
    """The settings to ask for, given a server's description of itself, and the facts to store about it."""
    if not description.get("supported"):
        return [UNCOMPRESSED], {
            "num_patches": None,
            "left_out": ["all settings but off: the server has no compression"],
        }
    shape = described_shape(description)
    methods = [method for method in METHODS if method.selection == selection]
    settings, left_out = settings_for(methods, shares, shape, description["limits"]["max_reduction"])
    about = {"num_patches": shape.num_patches, "num_layers": shape.decoder.num_layers}
    return [UNCOMPRESSED, *settings], {**about, "boundaries": shape.boundaries, "left_out": left_out}


def _command(args: argparse.Namespace, checkpoint: str) -> list[str]:
    from transformers import AutoConfig

    num_layers = AutoConfig.from_pretrained(checkpoint).get_text_config().num_hidden_layers
    boundaries = ",".join(map(str, args.boundaries or boundaries_for(num_layers)))
    argv = [sys.executable, "-m", "duet_server.cli", "serve", checkpoint, "--duet-boundaries", boundaries]
    eager = [] if args.compile else ["--enforce-eager"]
    return [*argv, *FLAGS, *SIZES, *eager, *args.server_args]


def _check_selection(selection: str, log: Path, start: int) -> None:
    """Raise RuntimeError unless the log, from byte ``start`` on, says that the server uses its selection."""
    if selection != OWN and says_in_log(selection).encode() not in log.read_bytes()[start:]:
        raise RuntimeError(f"the server does not use {selection} for stage 1")
