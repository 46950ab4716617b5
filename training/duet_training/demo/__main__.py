"""Builds the demo model from a seed: trains its tower, then runs duet-train without and with compression."""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from duet_training.arguments import read_arguments
from duet_training.demo.data import write_training_set
from duet_training.demo.model import write_untrained
from duet_training.demo.tower import align_words, pretrain_tower
from duet_training.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
QUESTIONS_PER_PICTURE = 8


def build(folder: Path, seed: int, pictures: Sequence[int], overrides: Sequence[str] = ()) -> Path:
    """Write tower, data and both models into ``folder``, and keep existing parts. Returns the checkpoint to ship.

    ``pictures`` has three counts: pictures for the tower alone, for the tower with words, and for the questions.
    """
    num_alone, num_with_words, num_asked = pictures
    untrained, tower, uncompressed, compressed = (
        folder / name for name in ("untrained", "tower", "uncompressed", "compressed")
    )
    if not (tower / "done").exists():
        write_untrained(untrained, seed)
        shutil.copytree(untrained, tower, dirs_exist_ok=True)
        pretrain_tower(tower, num_alone, seed)
        align_words(tower, num_with_words, seed)
        (tower / "done").touch()
    data = folder / "data" / "conversations.json"
    if not data.exists():
        write_training_set(data.parent, num_asked, QUESTIONS_PER_PICTURE, seed)
    for name, start, output in (("demo", tower, uncompressed), ("demo_compressed", uncompressed, compressed)):
        if (output / "model.safetensors").exists():
            continue
        paths = {"model": start, "data": data, "images": data.parent, "output_dir": output, "seed": seed}
        words = [*(f"{key}={value}" for key, value in paths.items()), *overrides]
        train(*read_arguments(CONFIGS / f"{name}.yaml", words))
    return ship(compressed, untrained, folder / "shipped")


def ship(checkpoint: Path, untrained: Path, target: Path) -> Path:
    """Write the checkpoint's weights in bfloat16, together with the other files of the untrained checkpoint."""
    LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).save_pretrained(target)
    for name in _FILES:
        shutil.copyfile(untrained / name, target / name)
    return target


_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m duet_training.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder; an interrupted run continues there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces this key's value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pictures",
        type=int,
        nargs=3,
        default=(110_000, 80_000, 176_000),
        help="pictures for the tower alone, for the tower with words, and for the questions (%(default)s)",
    )
    words = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO)
    print(build(words.folder, words.seed, words.pictures, words.overrides))


if __name__ == "__main__":
    main()
