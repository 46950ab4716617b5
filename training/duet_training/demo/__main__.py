"""Builds the demo model from a seed: tower, uncompressed training, compressed training, all by the training path."""

from __future__ import annotations

import argparse
import logging
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
logger = logging.getLogger(__name__)


def build(folder: Path, seed: int, num_tower_pictures: int, num_pictures: int, overrides: Sequence[str] = ()) -> Path:
    """Write tower, data and both models below ``folder``; what is there already stays. The checkpoint to be shipped."""
    tower, uncompressed, compressed = (folder / name for name in ("tower", "uncompressed", "compressed"))
    if not (tower / "done").exists():
        write_untrained(tower, seed)
        pretrain_tower(tower, num_tower_pictures, seed)
        align_words(tower, num_tower_pictures, seed)
        (tower / "done").touch()
    data = folder / "data" / "conversations.json"
    if not data.exists():
        write_training_set(data.parent, num_pictures, QUESTIONS_PER_PICTURE, seed)
    for name, start, output in (("demo", tower, uncompressed), ("demo_compressed", uncompressed, compressed)):
        if (output / "model.safetensors").exists():
            continue
        paths = {"model": start, "data": data, "images": data.parent, "output_dir": output, "seed": seed}
        words = [*(f"{key}={value}" for key, value in paths.items()), *overrides]
        train(*read_arguments(CONFIGS / f"{name}.yaml", words))
    return ship(compressed, folder / "shipped")


def ship(checkpoint: Path, target: Path) -> Path:
    """The checkpoint in bfloat16, without what only training needs."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m duet_training.demo", description=__doc__)
    parser.add_argument("folder", type=Path, help="where everything is written; a run that was cut off goes on there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in the place of the configurations'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-pictures", type=int, default=110_000)
    parser.add_argument("--pictures", type=int, default=48_000)
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    print(build(words.folder, words.seed, words.tower_pictures, words.pictures, words.overrides))


if __name__ == "__main__":
    main()
