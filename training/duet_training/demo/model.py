"""The demo model before training: a small LLaVA with a CLIP tower, and a tokenizer that knows the demo's words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, LlavaForConditionalGeneration

from duet_server.demo import DEMO_MARK
from duet_training import random_llava
from duet_training.demo.data import TRAINING_SET, picture
from duet_training.demo.questions import ask_several
from duet_training.demo.scene import CANVAS
from duet_training.random_llava import SPECIAL_TOKENS, TEMPLATE_IMAGES_FIRST, write_llava_without_weights

VOCAB_SIZE = 512
TOWER_SIZES: dict[str, Any] = {
    **random_llava.TOWER_SIZES,
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "image_size": CANVAS,
    "projection_dim": 160,
    "hidden_act": "gelu",
}
DECODER_SIZES: dict[str, Any] = {
    **random_llava.DECODER_SIZES,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": VOCAB_SIZE,
}
# Maps transformers' module names to the names in published LLaVA checkpoints, which servers load.
PUBLISHED_NAMES = (
    (r"^model\.vision_tower\.", "vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
_NUM_TEXTS = 2_000


def write_untrained(directory: Path, seed: int) -> Path:
    """Write the demo model with random weights and its tokenizer; returns ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(_texts(seed))
    write_llava_without_weights(
        directory,
        TOWER_SIZES,
        DECODER_SIZES,
        config={DEMO_MARK: True},
        tokenizer=tokenizer,
        chat_template=TEMPLATE_IMAGES_FIRST,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(directory))
    start_by_likeness(model.model.language_model)
    weights = {_published_name(name): weight for name, weight in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@torch.no_grad()
def start_by_likeness(decoder: nn.Module) -> None:
    """Initialize every attention head so that it attends to rows similar to its query, and passes on their content.

    Key weights equal query weights, and output weights are the transposed value weights. From the first step, a word
    then finds the patches that it names. Otherwise, a decoder of this size would need most of its training to learn
    this. All scales preserve variance.
    """
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T / 2)
        mlp.down_proj.weight.div_(4)  # sqrt(2 * 8 layers), because the outputs of all layers add up


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-pair tokenizer: it can encode any text, and the words of ``texts`` get tokens of their own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[bos])
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE, f"{tokenizer.get_vocab_size()=}"
    return tokenizer


def _texts(seed: int) -> Iterable[str]:
    for idx in range(_NUM_TEXTS):
        scene, _, rng = picture(seed, TRAINING_SET, idx)
        for question in ask_several(scene, 8, rng):
            yield f"USER: {question.text} ASSISTANT: {question.answer}"


def _published_name(name: str) -> str:
    for pattern, replacement in PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    return name
