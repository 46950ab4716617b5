"""The parts of the general model and processor that need no engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextConfig
from vllm.multimodal.processing.processor import PromptUpdateDetails

from duet_kernels import select_and_merge
from duet_server.engine.backbones import table
from duet_server.engine.backbones.internvl import INTERNLM2, InternVL
from duet_server.engine.backbones.llava import Llava, LlavaSiglip
from duet_server.engine.backbones.llava_next import LlavaNext
from duet_server.engine.cut import Encoded, cut
from duet_server.engine.model import batches
from duet_server.engine.positions import KeptPositions
from duet_server.engine.processor import shrink
from duet_server.engine.vllm_internals import PlaceholderRange
from duet_server.plan import Unit
from tests.golden_next import CHECKPOINT, whole_rows

IMAGE, TIME = 7, 8  # tokens


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=4), max_size=12), st.integers(1, 60))
def test_the_tower_never_gets_more_than_a_step(sizes, most):
    """Unless one item alone is larger."""
    items = [[Unit(1, size) for size in item] for item in sizes]
    ranges = list(batches(items, most))
    assert [edge for pair in ranges for edge in pair][1:-1] == [
        edge for start, _ in ranges[1:] for edge in (start,) * 2
    ]
    assert ranges[:1] == ([(0, ranges[0][1])] if items else [])
    assert not items or ranges[-1][1] == len(items)
    for start, end in ranges:
        total = sum(map(sum, sizes[start:end]))
        assert total <= most or end == start + 1
    for (start, _), (_, end) in pairwise(ranges):
        assert sum(map(sum, sizes[start:end])) > most, "two batches that would fit one"


def placeholder(*tokens: int) -> PromptUpdateDetails:
    return PromptUpdateDetails.select_token_id(list(tokens), IMAGE)


def visual(details: PromptUpdateDetails) -> list[bool]:
    return details.is_embed(details.full).tolist()


def test_placeholders_shrink_unit_by_unit():
    """Structure between units stays, breaks inside a unit that is cut go."""
    frame = [IMAGE, IMAGE, 9, IMAGE, IMAGE, 9]  # two rows, each with a break behind it
    details = placeholder(TIME, *frame, TIME, *frame, TIME, *frame)
    shrunk = shrink(details, [Unit(2, 2, 2, 1), Unit(2, 2), Unit(2, 2, 1, 0)])
    assert shrunk.full == [TIME, IMAGE, IMAGE, IMAGE, 9, TIME, *frame, TIME, IMAGE, 9]
    assert visual(shrunk) == [token == IMAGE for token in shrunk.full]


def test_a_placeholder_may_grow_by_the_class_token_and_may_be_joined():
    shrunk = shrink(PromptUpdateDetails.from_seq([IMAGE] * 4), [Unit(2, 2, 5, 0)])
    assert shrunk.full == [IMAGE] * 5
    joined = shrink(PromptUpdateDetails.from_seq([1, *[IMAGE] * 10, 2]), [Unit(2, 2, 2, 1), Unit(2, 2, 2, 1)])
    assert joined.full.count(IMAGE) == 0, "all tokens are visual without a mask"
    assert len(joined.full) == 6


@given(st.data())
@settings(max_examples=60)
def test_units_of_all_sizes_are_cut_as_if_alone(data):
    has_cls, in_place = data.draw(st.booleans()), data.draw(st.booleans())
    units = []
    for _ in range(data.draw(st.integers(1, 6))):
        rows, columns = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
        dominant = data.draw(st.integers(0, rows * columns))
        contextual = data.draw(st.integers(0, rows * columns - dominant)) if dominant else 0
        units.append(Unit(rows, columns, dominant, contextual, data.draw(st.integers(0, 3)) if dominant else 0))
    generator = torch.Generator().manual_seed(0)
    num_rows = sum(unit.num_tokens + has_cls for unit in units)
    rows, metric = (torch.randn(num_rows, size, generator=generator) for size in (5, 3))
    score = torch.rand(sum(unit.num_tokens for unit in units), generator=generator)
    found = cut(Encoded(rows, score, metric), units, has_cls=has_cls, in_place=in_place)
    first, first_score = 0, 0
    for unit, (kept, places) in zip(units, found, strict=True):
        part = slice(first, first := first + unit.num_tokens + has_cls)
        scores = score[first_score : (first_score := first_score + unit.num_tokens)]
        if not unit.is_cut:
            assert torch.equal(kept, rows[part][int(has_cls) :])
            assert places is None
            continue
        alone, _, stands_at = select_and_merge(
            rows[part][None], scores[None], metric[part][None], [unit.counts], has_cls=has_cls
        )
        order = stands_at.argsort() if in_place else torch.arange(len(stands_at))
        torch.testing.assert_close(kept, alone[order])
        assert places.tolist() == stands_at[order].tolist()


@dataclass
class Feature:
    """The part of vLLM's feature that positions read."""

    data: dict
    mm_position: PlaceholderRange
    modality: str = "image"


class Positions:
    """vLLM's part of an M-RoPE model: text counts on, an image takes the places of its grid."""

    config = None
    backbone = SimpleNamespace(embed_id=lambda config, modality: IMAGE)

    def get_mrope_input_positions(self, tokens, features):
        grids = iter([feature.data["duet_units_image"].data.tolist() for feature in features])
        positions, position, row = [], 0, 0
        while row < len(tokens):
            if tokens[row] != IMAGE:
                positions.append((position,) * 3)
                position, row = position + 1, row + 1
                continue
            for rows, columns, *_ in next(grids):
                block = [(position, position + y, position + x) for y in range(rows) for x in range(columns)]
                assert tokens[row : row + len(block)] == [IMAGE] * len(block), "the prompt is not whole"
                positions += block
                row, position = row + len(block), position + max(rows, columns)
        return torch.tensor(positions).T, position - len(tokens)


class Kept(KeptPositions, Positions):
    pass


@pytest.mark.parametrize("counts", [(0, 0, 0), (2, 1, 4)], ids=["whole", "cut"])
def test_text_stands_where_it_would_stand_uncompressed(counts):
    def prompt(pair, whole):
        grids = [(3, 4), (2, 2)]
        units = [Unit(*grid, *(counts if not whole else (0, 0, 0))) for grid in grids]
        tokens, features = [1, 2], []
        for unit in units[:pair]:
            features.append(
                Feature(
                    {"duet_units_image": SimpleNamespace(data=torch.tensor([unit]))},
                    PlaceholderRange(len(tokens), unit.num_entering),
                )
            )
            tokens += [IMAGE] * unit.num_entering + [3]
        return [*tokens, 4, 5], features

    tokens, features = prompt(2, whole=False)
    full, full_features = prompt(2, whole=True)
    positions, delta = Kept().get_mrope_input_positions(tokens, features)
    expected, full_delta = Positions().get_mrope_input_positions(full, full_features)
    text = [row for row, token in enumerate(tokens) if token != IMAGE]
    full_text = [row for row, token in enumerate(full) if token != IMAGE]
    assert positions[:, text].tolist() == expected[:, full_text].tolist()
    assert len(tokens) + delta == len(full) + full_delta, "the first new token stands where it would stand"
    starts = [feature.mm_position.offset for feature in features]
    origins = expected[:, [feature.mm_position.offset for feature in full_features]]
    assert positions[:, starts].tolist() == origins.tolist()


def test_other_packages_may_add_backbones(monkeypatch):
    point = SimpleNamespace(name="MyModel", value="duet_server.engine.backbones.llava:LlavaSiglip")
    monkeypatch.setattr(table, "entry_points", lambda group: [point] if group == "duet_server.backbones" else [])
    for cached in (table.backbones, table.backbone_of):
        cached.cache_clear()
    try:
        assert isinstance(table.backbone_of("MyModel"), LlavaSiglip)
        assert isinstance(table.backbone_of("LlavaForConditionalGeneration"), Llava)
        assert table.backbone_of("Another") is None
    finally:
        for cached in (table.backbones, table.backbone_of):
            cached.cache_clear()


@given(st.integers(20, 1500), st.integers(20, 1500))
@settings(max_examples=60)
def test_rows_of_a_whole_llava_next_picture(height, width):
    config = LlavaNextConfig.from_pretrained(CHECKPOINT)
    item = {"image_sizes": SimpleNamespace(data=torch.tensor([height, width]))}
    assert LlavaNext().whole_rows(config, item) == whole_rows(height, width)


def test_internlm2_has_other_names():
    text = SimpleNamespace(architectures=["InternLM2ForCausalLM"])
    assert InternVL().variant(SimpleNamespace(get_text_config=lambda: text)).decoder == INTERNLM2
