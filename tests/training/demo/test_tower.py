from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from duet_training.demo.data import TOWER_SET, picture
from duet_training.demo.scene import COLORS, KINDS, PLACES, Thing
from duet_training.demo.tower import (
    NOTHING,
    PATCH_WORDS,
    AttributeModel,
    LinearHead,
    SceneDataset,
    WordHead,
    count_targets,
    normalized,
    patch_targets,
)
from tests.golden_cases import checkpoint_path

SCENE = (Thing("circle", "", "red", "small", 21, 35, 10), Thing("digit", "7", "blue", "large", 120, 120, 16))


def test_patches_know_what_covers_them():
    targets = patch_targets(SCENE, patch_size=14)
    kind = targets["kind"].reshape(12, 12)

    assert kind[2, 1] == KINDS.index("circle")
    assert kind[8, 8] == KINDS.index("digit")
    assert kind[0, 11] == len(KINDS)
    assert (kind != len(KINDS)).sum() == 1 + 9
    assert targets["color"].reshape(12, 12)[2, 1] == COLORS.index("red")
    assert targets["glyph"].reshape(12, 12)[2, 1] == NOTHING
    assert targets["color"].reshape(12, 12)[0, 11] == NOTHING
    np.testing.assert_allclose(targets["offset"].reshape(12, 12, 2)[2, 1], [0.0, 0.0])
    np.testing.assert_allclose(targets["offset"].reshape(12, 12, 2)[8, 8], [1 / 20, 1 / 20])


def test_counts_of_kinds_colors_and_all_things():
    counts = count_targets(SCENE)
    assert counts[KINDS.index("circle")] == counts[len(KINDS) + COLORS.index("blue")] == 1
    assert counts[KINDS.index("star")] == 0
    assert counts[-1] == 2


def test_pixels_are_the_processors():
    processor = AutoImageProcessor.from_pretrained(checkpoint_path("llava_mha"))
    _, drawn, _ = picture(0, TOWER_SET, 0)
    expected = processor(drawn, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(normalized(drawn, processor), expected, atol=1e-5)


def test_places_are_words_too():
    place = patch_targets(SCENE, patch_size=14)["place"].reshape(12, 12)
    assert PLACES[place[2, 1]] == "top left"
    assert place[0, 11] == NOTHING


def model_with(head: Callable[[LlavaForConditionalGeneration], nn.Module]) -> AttributeModel:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=168, patch_size=14
    )
    text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=261)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    return AttributeModel(llava.model.vision_tower, -2, head(llava))


def words(llava: LlavaForConditionalGeneration) -> WordHead:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("llava_mha"))
    return WordHead(llava.model.multi_modal_projector, llava.get_input_embeddings(), tokenizer)


@pytest.mark.parametrize("head", [lambda _: LinearHead(32), words], ids=["linear", "words"])
def test_a_few_steps_lower_the_loss(head):
    model = model_with(head)
    processor = AutoImageProcessor.from_pretrained(checkpoint_path("llava_mha"))
    dataset = SceneDataset(range(8), 0, processor, 14)
    batch = torch.utils.data.default_collate([dataset[idx] for idx in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


def test_a_patch_is_scored_by_the_words_for_it():
    head = model_with(words).patch_head
    ids = head.token_ids[KINDS.index("star")]
    star = head.embeddings.weight[ids].mean(dim=0)
    head.projector = nn.Identity()
    logits = head(star[None])
    assert logits.shape == (1, 1 + sum(map(len, PATCH_WORDS.values())))
    assert logits.argmax() == 1 + KINDS.index("star")
