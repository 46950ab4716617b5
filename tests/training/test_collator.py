"""Batches for the model's forward pass."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor

from duet_server.plan import CompressionSettings, guiding_rows, make_layout
from duet_training.collator import Collator, read_picture
from duet_training.conversations import IGNORED
from duet_training.dataset import ConversationDataset
from duet_training.records import BadDataError, Record, Turn
from tests.golden_cases import IMAGE_TOKEN_ID, NUM_PATCHES, checkpoint_path, golden_cases

OFF = CompressionSettings(None, 0, None, (1.0, 1.0), "all", "off")
SMALL = CompressionSettings(3, 1, 4, (0.5, 0.0), "last", "custom")
SALIENT = CompressionSettings(2, 1, 4, (0.5, 0.0), "salient", "custom")
PAD = 3


@cache
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(checkpoint_path("llava_mha"))


@pytest.fixture
def picture(tmp_path):
    """Write a picture of noise. Returns its path."""

    def write(name: str, size=(168, 168), seed: int = 0) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def dataset(*records: tuple[list[str], str, str], max_length: int = 2000) -> ConversationDataset:
    """A dataset of records (pictures, question, answer)."""
    rows = [
        Record(idx, f"id{idx}", tuple(paths), (Turn("user", question), Turn("assistant", answer)))
        for idx, (paths, question, answer) in enumerate(records)
    ]
    return ConversationDataset(rows, processor(), NUM_PATCHES, max_length)


def samples(*records: tuple[list[str], str, str]) -> list[dict]:
    return list(dataset(*records))


def collator(*compressions: CompressionSettings, on_bad_data: str = "refuse", seed: int = 0) -> Collator:
    return Collator(processor(), NUM_PATCHES, compressions or (SMALL,), on_bad_data, seed)


def tokens(text: str) -> list[int]:
    return processor().tokenizer(text, add_special_tokens=False)["input_ids"]


# ---- rows ----


def test_a_batch_row_by_row(picture):
    batch = collator(SMALL)(samples(([picture("a.png")], "<image>\nWhat?", "Hi"), ([], "Hm?", "A")))
    first = [*tokens("<s>USER: "), *[IMAGE_TOKEN_ID] * 4, *tokens("\nWhat? ASSISTANT:")]
    second, first_answer, second_answer = tokens("<s>USER: Hm? ASSISTANT:"), tokens(" Hi</s>"), tokens(" A</s>")
    num_pad = len(first + first_answer) - len(second + second_answer)
    assert batch["input_ids"].tolist() == [first + first_answer, second + second_answer + [PAD] * num_pad]
    assert batch["labels"].tolist() == [
        [IGNORED] * len(first) + first_answer,
        [IGNORED] * len(second) + second_answer + [IGNORED] * num_pad,
    ]
    assert batch["attention_mask"].tolist() == [
        [1] * len(first + first_answer),
        [1] * len(second + second_answer) + [0] * num_pad,
    ]
    guides = torch.zeros_like(batch["guiding"])
    guides[0, len(first) - 1] = True
    assert torch.equal(batch["guiding"], guides)
    assert batch["compression"] is SMALL
    dtypes = {name: tensor.dtype for name, tensor in batch.items() if isinstance(tensor, torch.Tensor)}
    assert dtypes == {
        **dict.fromkeys(("input_ids", "labels", "attention_mask"), torch.int64),
        "guiding": torch.bool,
        "pixel_values": torch.float32,
    }


@pytest.mark.parametrize(("compression", "num_visual"), [(OFF, NUM_PATCHES), (SMALL, 4), (SALIENT, 3)])
def test_every_picture_takes_what_enters(picture, compression, num_visual):
    paths = [picture("a.png"), picture("b.png", seed=1)]
    batch = collator(compression)(samples((paths, "<image> cat <image> dog?", "A")))
    prompt = tokens("<s>USER: ")
    visual = [IMAGE_TOKEN_ID] * num_visual
    prompt += [*visual, *tokens("\ncat"), *visual, *tokens("\ndog? ASSISTANT:")]
    assert batch["input_ids"].tolist() == [prompt + tokens(" A</s>")]


@pytest.mark.parametrize("compression", [OFF, SMALL, SALIENT], ids=lambda settings: settings.guide)
def test_guiding_rows_are_the_plans(picture, compression):
    batch = collator(compression)(samples(([picture("a.png")], "<image>\nbig cat", "A")))
    num_visual = compression.num_entering(NUM_PATCHES)
    start = len(tokens("<s>USER: "))
    end = start + num_visual
    layout = make_layout(end + len(tokens("\nbig cat ASSISTANT:")), [(start, end)])
    salient = [end + 1, end + 2, end + 3, end + 5, end + 6, end + 7]
    assert batch["guiding"][0].nonzero().flatten().tolist() == list(guiding_rows(layout, compression.guide, salient))


def test_text_alone_has_no_pixels():
    batch = collator()(samples(([], "Hm?", "A")))
    assert set(batch) == {"input_ids", "labels", "attention_mask", "guiding", "compression"}
    assert not batch["guiding"].any()


# ---- pictures ----


def test_pixels_are_the_image_processors_in_the_prompts_order(picture):
    paths = [picture("a.png"), picture("b.png", (300, 200), 1), picture("c.png", (90, 200), 2)]
    records = [(paths[:1], "<image>\nWhat?", "A"), ([], "Hm?", "A"), (paths[1:], "<image> or <image>?", "A")]
    pixels = collator()(samples(*records))["pixel_values"]
    assert pixels.shape == (3, 3, 168, 168)
    for row, path in zip(pixels, paths, strict=True):
        alone = processor().image_processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
        assert torch.equal(row, alone[0])


def test_pixels_are_the_golden_ones():
    case = golden_cases("llava_mha")[0]
    pixels = collator()(samples(([str(case.picture_path)], "<image>\nWhat?", "A")))["pixel_values"]
    np.testing.assert_allclose(pixels[0], case.pixel_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 7, (7, 7, 7)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (7, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_pictures_are_rgb_on_white(tmp_path, mode, color, expected):
    Image.new(mode, (2, 2), color).save(tmp_path / "a.png")
    read = read_picture(str(tmp_path / "a.png"))
    assert read.mode == "RGB"
    assert read.getpixel((1, 1)) == expected


def test_pictures_are_upright(tmp_path):
    drawn = Image.new("RGB", (2, 1), "white")
    drawn.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned by 90 degrees clockwise
    drawn.save(tmp_path / "a.png", exif=exif)
    read = read_picture(str(tmp_path / "a.png"))
    assert [read.size, read.getpixel((0, 0)), read.getpixel((0, 1))] == [(1, 2), (255, 0, 0), (255, 255, 255)]


# ---- bad data ----


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.jpg"
    Image.effect_noise((168, 168), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


def test_a_broken_picture_is_refused(picture, broken):
    batch = samples(([picture("a.png")], "<image>\nWhat?", "A"), ([broken], "<image>\nWhat?", "A"))
    with pytest.raises(BadDataError) as raised:
        collator()(batch)
    expected = f"record 1 (id 'id1'): picture {broken} cannot be decoded, expected a complete image file: "
    assert str(raised.value).startswith(f"batch: bad data\n{expected}")


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", None], ids=["empty", "text", "head", "gone"]
)
def test_files_that_are_no_pictures_are_refused(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadDataError, match=r"a\.png cannot be decoded, expected a complete image file: "):
        read_picture(str(path))


def test_a_sample_with_a_broken_picture_is_left_out(picture, broken, caplog):
    good = ([picture("a.png")], "<image>\nWhat?", "A")
    two_pictures = ([picture("b.png"), broken], "<image>\n<image>\nWhat is it?", "A")
    with caplog.at_level(logging.WARNING):
        batch = collator(on_bad_data="skip")(samples(good, two_pictures, good))
    (message,) = caplog.messages
    assert message.startswith(f"batch: left out: record 1 (id 'id1'): picture {broken} cannot be decoded")
    without = collator()(samples(good, good))
    for name in ("input_ids", "labels", "attention_mask", "guiding", "pixel_values"):
        assert torch.equal(batch[name], without[name])


def test_a_sample_that_is_too_long_is_left_out(picture, caplog):
    rows = dataset(([picture("a.png")], "<image>\nWhat?", "A"), ([], "Hm?", "A"), max_length=100)
    with caplog.at_level(logging.WARNING):
        batch = collator(on_bad_data="skip")(list(rows))
    assert batch["input_ids"].tolist() == [tokens("<s>USER: Hm? ASSISTANT: A</s>")]
    assert "pixel_values" not in batch
    assert caplog.messages[0].startswith("batch: left out: record 0 (id 'id0'): the conversation has 171 tokens")
    with pytest.raises(BadDataError, match=r"record 0 \(id 'id0'\): the conversation has 171 tokens"):
        collator()(list(rows))


def test_a_batch_without_a_good_sample_teaches_nothing(broken, caplog):
    with caplog.at_level(logging.WARNING):
        batch = collator(on_bad_data="skip")(samples(([broken], "<image>\nWhat?", "A")))
    assert caplog.messages[0].startswith("batch: left out: record 0 (id 'id0'): picture")
    rows = {name: tensor.tolist() for name, tensor in batch.items() if name != "compression"}
    assert rows == {"input_ids": [[PAD]], "labels": [[IGNORED]], "attention_mask": [[1]], "guiding": [[False]]}


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="on_bad_data is 'ignore'"):
        collator(on_bad_data="ignore")
    with pytest.raises(ValueError, match="compressions is empty"):
        Collator(processor(), NUM_PATCHES, [])


# ---- which settings ----


def drawn(collate: Collator, num: int = 30) -> list[CompressionSettings]:
    rows = dataset(*[([], "Hm?", "A")] * num)
    return [collate([rows[idx]])["compression"] for idx in range(num)]


def test_settings_are_drawn_per_batch_and_repeat_with_the_seed():
    first = drawn(collator(OFF, SMALL, SALIENT, seed=1))
    assert set(first) == {OFF, SMALL, SALIENT}
    assert drawn(collator(OFF, SMALL, SALIENT, seed=1)) == first
    assert drawn(collator(OFF, SMALL, SALIENT, seed=2)) != first
    assert set(drawn(collator(SMALL))) == {SMALL}
