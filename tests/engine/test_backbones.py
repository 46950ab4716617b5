"""Every backbone in the engine against transformers: tokens and log probabilities, alone and in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import internvl, llava, llava_next, qwen_vl
from tests.engine.in_process import Ask, InProcessEngine, in_process_engine, text_ids
from tests.engine.stock_tokens import stock_tokens
from tests.oracle.families import InternVLChatOracle, InternVLOracle, LlavaOracle, Qwen25Oracle, QwenOracle
from tests.oracle.general import Generated, Oracle
from tests.oracle.tiles import LlavaNextOracle

BOUNDARIES = (4, 6)
NUM_TOKENS = 8
MIN_MARGIN = 1e-3  # between the best two logits of a step; a smaller one may fall either way


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint, its oracle, and what prompts of it look like."""

    write: Callable[[Path], Path]
    oracle: type[Oracle]
    before_image: tuple[int, ...]
    image_token_id: int
    after_image: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # of pictures, in pixels
    has_cls: bool = False

    def ask(self, seed: int, num_images: int, **settings: Any) -> Ask:
        """A prompt of pictures of random sizes with text between them; two of three pictures touch."""
        rng = np.random.default_rng(seed)
        images, ids = [], [1, *text_ids(seed, 3)]
        for idx in range(num_images):
            width, height = self.sizes[int(rng.integers(len(self.sizes)))]
            images.append(Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))
            ids += [*self.before_image, self.image_token_id, *self.after_image]
            ids += text_ids(seed + idx, 2) if idx != 1 else []
        return Ask([*ids, *text_ids(seed + 9, 5)], images, max_tokens=NUM_TOKENS, **settings)


def qwen(name: str, oracle: type[Oracle] = QwenOracle) -> Family:
    sizes = ((112, 140), (84, 56), (196, 112), (70, 70))
    return Family(lambda path: qwen_vl.write_qwen_vl(path, name), oracle, (3,), qwen_vl.IMAGE_TOKEN_ID, (4,), sizes)


def llava_with(tower: str, decoder: str) -> Family:
    size = llava.SIDE * llava.PATCH
    return Family(
        lambda path: llava.write_llava(path, tower, decoder),
        LlavaOracle,
        (),
        llava.IMAGE_TOKEN_ID,
        (),
        ((size, size),),
        has_cls=tower == "clip",
    )


def internvl_with(decoder: str, *, use_qk_norm: bool) -> Family:
    """Pictures of one, two and four tiles; several tiles come with a small view of the whole picture."""
    return Family(
        lambda path: internvl.write_internvl(path, decoder, use_qk_norm=use_qk_norm),
        InternVLOracle,
        (),
        internvl.IMAGE_TOKEN_ID,
        (),
        ((100, 100), (200, 100), (110, 220), (230, 220)),
    )


def internvl_chat(decoder: str) -> Family:
    """The original format, whose pictures here fit tiles exactly."""
    side = internvl.SIDE * internvl.PATCH
    return Family(
        lambda path: internvl.write_internvl_chat(path, decoder),
        InternVLChatOracle,
        (),
        internvl.CHAT_IMAGE_TOKEN_ID,
        (),
        ((side, side), (2 * side, side), (side, 3 * side), (2 * side, 2 * side)),
    )


def tiled_llava() -> Family:
    """Pictures of a row, a column and a square of tiles, with padding."""
    sizes = ((120, 40), (56, 168), (100, 100))
    return Family(llava_next.write_llava_next, LlavaNextOracle, (), llava_next.IMAGE_TOKEN_ID, (), sizes, has_cls=True)


FAMILIES = {
    "qwen2_vl": qwen("qwen2_vl"),
    "qwen2_5_vl": qwen("qwen2_5_vl", Qwen25Oracle),
    "qwen3_vl": qwen("qwen3_vl"),
    "qwen3_vl_moe": qwen("qwen3_vl_moe"),
    "llava siglip qwen2": llava_with("siglip", "qwen2"),
    "llava clip mistral": llava_with("clip", "mistral"),
    "llava siglip qwen3": llava_with("siglip", "qwen3"),
    "llava_next": tiled_llava(),
    "internvl qwen2": internvl_with("qwen2", use_qk_norm=True),
    "internvl qwen3": internvl_with("qwen3", use_qk_norm=False),
    "internvl chat qwen2": internvl_chat("qwen2"),
    "internvl chat internlm2": internvl_chat("internlm2"),
}


@dataclass
class Served:
    """A running engine of a family, and its oracle."""

    family: Family
    engine: InProcessEngine
    oracle: Oracle

    def ask(self, seed: int, num_images: int, **settings: Any) -> Ask:
        return self.family.ask(seed, num_images, **settings)

    def expected(self, ask: Ask) -> Generated:
        return self.oracle.generate(
            ask.input_ids,
            ask.images,
            counts=lambda num_tokens: counts_of(ask.stage1, num_tokens, self.family.has_cls),
            boundaries=BOUNDARIES,
            keep=ask.keep or (),
            guide=ask.guide,
            max_new_tokens=ask.max_tokens,
        )


def counts_of(stage1: tuple[float, float, int] | None, num_tokens: int, has_cls: bool) -> tuple[int, int, int] | None:
    """(D, C, W) of a unit: shares below 1 are rounded, counts are at most what the unit has."""
    if stage1 is None:
        return None
    dominant, contextual = (round(n * num_tokens) if n < 1 else int(n) for n in stage1[:2])
    dominant = min(max(1, dominant), num_tokens + has_cls)
    return dominant, min(contextual, num_tokens + has_cls - dominant), stage1[2]


OFF = ((0, 1), (1, 2), (2, 4))  # uncompressed prompts: seeds and numbers of pictures


@pytest.fixture(scope="module")
def checkpoints(request, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of every family that pytest has selected."""
    selected = {item.callspec.params.get("served") for item in request.session.items if hasattr(item, "callspec")}
    return {name: FAMILIES[name].write(tmp_path_factory.mktemp("checkpoint")) for name in FAMILIES if name in selected}


@pytest.fixture(scope="module")
def stock(checkpoints, tmp_path_factory) -> dict[str, list[list[int]]]:
    """The tokens of stock vLLM for the prompts ``OFF``."""
    jobs = [
        (path, engine_args(name), [FAMILIES[name].ask(*prompt) for prompt in OFF]) for name, path in checkpoints.items()
    ]
    return dict(zip(checkpoints, stock_tokens(jobs, tmp_path_factory.mktemp("stock") / "jobs"), strict=True))


def engine_args(name: str) -> dict[str, Any]:
    limits = {"image": 4} | ({"video": 0} if not name.startswith("llava") else {})
    return {"limit_mm_per_prompt": limits, "block_size": 32, "trust_remote_code": name.startswith("internvl chat")}


@pytest.fixture(scope="module", params=FAMILIES)
def served(request, stock, checkpoints) -> Served:
    checkpoint, duet = checkpoints[request.param], {"boundaries": list(BOUNDARIES)}
    with in_process_engine(checkpoint, **engine_args(request.param), additional_config={"duet": duet}) as engine:
        family = FAMILIES[request.param]
        yield Served(family, engine, family.oracle(checkpoint))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"stage1": (0.5, 0.2, 2)},
    {"stage1": (9, 3, 4)},
    {"stage1": (0.3, 0.1, 0)},
    {"keep": [0.5, 0.25]},
    {"keep": [0.7, 0.0], "guide": "last"},
    {"stage1": (0.4, 0.15, 3), "keep": [0.5, 0.2]},
    {"stage1": (14, 0, 4), "keep": [0.6, 0.0]},
]


def check(served: Served, ask: Ask, output: Any) -> int:
    """Compare an output with the oracle; returns how many tokens were compared."""
    expected = served.expected(ask)
    margins = -expected.logits.topk(2).values.diff().squeeze(1)
    is_close = (margins < MIN_MARGIN).nonzero()[:, 0].tolist()
    num_sure = is_close[0] if is_close else len(expected.tokens)
    assert list(output.token_ids)[:num_sure] == expected.tokens[:num_sure], ask
    log_probabilities = expected.logits.log_softmax(dim=-1)
    vocabulary = range(log_probabilities.shape[1])
    for step in range(min(num_sure + 1, len(expected.tokens))):
        found = torch.tensor([output.logprobs[step][token].logprob for token in vocabulary])
        assert (found - log_probabilities[step]).abs().max() < 1e-3, (ask, step)
    return num_sure


def test_every_setting_equals_the_oracle_alone_and_in_one_batch(served):
    asks = [
        served.ask(10 * seed, num_images, sampling={"logprobs": -1}, **settings)
        for seed, settings in enumerate(SETTINGS)
        for num_images in (1, 3)
    ]
    # The same pictures under several settings, which caches must keep apart.
    asks += [served.ask(700, 2, sampling={"logprobs": -1}, **settings) for settings in SETTINGS[::2]]
    text = Ask([1, *text_ids(5, 20)], max_tokens=NUM_TOKENS, sampling={"logprobs": -1})
    together = served.engine.generate(*asks, text)
    num_compared = sum(check(served, ask, output) for ask, output in zip([*asks, text], together, strict=True))
    assert num_compared > 0.9 * NUM_TOKENS * (len(asks) + 1)
    for ask, output in zip(asks[::3], together[::3], strict=True):
        served.engine.llm.reset_mm_cache()
        served.engine.engine.reset_encoder_cache()
        (alone,) = served.engine.tokens(ask)
        assert alone == list(output.token_ids), ask


def test_off_gives_the_tokens_of_stock_vllm(served, stock, request):
    name = request.node.callspec.params["served"]
    assert served.engine.tokens(*(served.ask(*prompt) for prompt in OFF)) == stock[name]


def test_off_is_vllms_own_tower(served):
    """The tap is closed and open: the tower's output is the same to the bit."""
    model = served.engine.model
    (tap,) = model.taps
    seen = []
    original = type(tap).forward

    def recorded(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        seen.append(output.clone())
        return output

    ask = served.ask(77, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tap), "forward", recorded)
        for settings in (None, (0.5, 0.1, 4)):
            served.engine.llm.reset_mm_cache()
            served.engine.engine.reset_encoder_cache()
            served.engine.tokens(Ask(ask.input_ids, ask.images, settings, max_tokens=1))
    closed, opened = seen
    assert torch.equal(closed, opened)


def test_caches_small_steps_and_preemptions_change_nothing(served, monkeypatch):
    """Warm caches, prompts in chunks unless stage 2 drops from them, and requests that start over in the middle."""
    engine = served.engine
    asks = [served.ask(300 + seed, 2, **settings) for seed, settings in enumerate(SETTINGS) if "stage1" in settings]
    asks.append(served.ask(399, 4))
    undisturbed = engine.tokens(*asks)
    stage1_only = next(ask for ask in asks if ask.stage1 and not ask.keep)
    request_id = engine.add(stage1_only)
    assert engine.run()[request_id].num_cached_tokens > 0, "the prefix cache serves stage 1 alone"

    requests = [engine.internal_request(engine.add(ask)) for ask in asks]
    longest = max(r.num_prompt_tokens for r in requests if engine.scheduler.plans.get(r.request_id))
    assert longest < max(r.num_prompt_tokens for r in requests), "nothing is chunked: this test tests nothing"
    monkeypatch.setattr(engine.scheduler, "max_num_scheduled_tokens", longest)
    finished = {}
    for step in range(1000):
        if not engine.engine.has_unfinished_requests():
            break
        finished |= {output.request_id: output for output in engine.engine.step() if output.finished}
        if step in (4, 9):
            assert engine.engine.reset_prefix_cache(reset_running_requests=True)
    assert any(request.num_preemptions for request in requests)
    served_tokens = [
        list(output.outputs[0].token_ids) for _, output in sorted(finished.items(), key=lambda o: int(o[0]))
    ]
    assert served_tokens == undisturbed


def test_a_flood_of_pictures_passes_the_tower_in_parts(served, monkeypatch):
    """Its memory goes by what it encodes, not by what stage 1 keeps: here one token of every picture or tile."""
    engine, backbone, limit = served.engine, served.engine.model.backbone, 100
    asks = [served.ask(600 + seed, 4, stage1=(1, 0, 4), keep=[1.0, 0.5]) for seed in range(6)]
    expected = engine.tokens(*asks)
    encode, num_rows = backbone.encode, []

    def recorded(*args):
        rows = encode(*args)
        num_rows.append(len(rows))
        return rows

    monkeypatch.setattr(backbone, "encode", recorded)
    monkeypatch.setattr(engine.model, "max_tokens", limit)
    engine.llm.reset_mm_cache()
    engine.engine.reset_encoder_cache()
    assert engine.tokens(*asks) == expected
    assert max(num_rows) <= limit * (17 / 16 if served.family.has_cls else 1)
    assert sum(num_rows) > 3 * limit


def test_a_request_beyond_the_decoders_positions_ends_alone(served, monkeypatch):
    """Without the API, which refuses it earlier. One token is left of a picture."""
    engine = served.engine
    about = engine.core.vllm_config.additional_config["duet"]["served"]
    if about["max_positions"] is None:
        pytest.skip("positions close up")
    ask = served.ask(500, 1, stage1=(1, 0, 4))
    bystander = served.ask(501, 1)
    expected = engine.tokens(ask, bystander)
    assert expected[0], "there are enough positions"
    monkeypatch.setitem(about, "max_positions", engine.core.vllm_config.model_config.max_model_len)
    ids = [engine.add(ask), engine.add(bystander)]
    finished = engine.run()
    assert finished[ids[0]].outputs[0].finish_reason == "error"
    assert list(finished[ids[1]].outputs[0].token_ids) == expected[1]
