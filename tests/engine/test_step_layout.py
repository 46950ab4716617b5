"""Steps with mixed requests against lists of tokens: which rows are held, their positions, and which rows are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from duet_kernels import dispatch, keep_highest
from duet_server.engine import ranks, text_stage
from duet_server.engine.attention import segment_metadata
from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.current_step import CurrentStep
from duet_server.engine.step_layout import StepLayout, move_layout
from duet_server.engine.vllm_internals import CommonAttentionMetadata, CUDAGraphMode
from duet_server.plan import RequestPlan, VisualRows
from duet_server.plan.wire import decode_plan
from tests.golden_cases import GoldenCase, golden_cases
from tests.held_counts import dropping_args

BLOCK_SIZE = 4
HIDDEN_SIZE, HEADS, KV_HEADS, HEAD_DIM = 6, 4, 2, 4
MOST_TOKENS = 64


@dataclass(frozen=True)
class Request:
    """One request of a step. `pools` are its visual tokens as (start, end); without `keep`, nothing is dropped."""

    num_prompt: int
    scheduled: int
    computed: int = 0
    pools: tuple[tuple[int, int], ...] = ()
    keep: tuple[float, ...] | None = None
    guide: str = "all"
    salient: tuple[int, ...] = ()

    def plan(self, num_segments: int) -> RequestPlan | None:
        if self.keep is None:
            return None
        extra_args = dropping_args(self.num_prompt, self.pools, self.keep, self.guide, self.salient)
        return decode_plan(extra_args, self.num_prompt, VisualRows(list(self.pools), []), num_segments - 1)

    def guiding(self) -> list[int]:
        """The prompt's guiding tokens, from the algorithm's description."""
        after = range(self.pools[0][1], self.num_prompt)
        text = [token for token in after if not any(start <= token < end for start, end in self.pools)]
        chosen = {"all": text, "last": [], "salient": [token for token in self.salient if token in text]}[self.guide]
        return sorted({*chosen, self.num_prompt - 1})


PADDING = Request(0, 0)


def scheduled(requests: list[Request], num_segments: int) -> tuple[list[RequestPlan | None], np.ndarray, np.ndarray]:
    """Plans, computed tokens and scheduled tokens, in the form that the runners pass."""
    plans = [request.plan(num_segments) for request in requests]
    counts = np.array([(request.computed, request.scheduled) for request in requests])
    return plans, counts[:, 0], counts[:, 1]


Score = Callable[[Request, list[int]], dict[int, float]]


class TooClose(Exception):  # noqa: N818
    """Two scores are so close that rounding could change which token is kept."""


def held_tokens(request: Request, num_segments: int, score: Score) -> list[list[int]]:
    """For each segment, the tokens that its cache holds after the step, by their position in the request."""
    held = [list(range(request.computed + request.scheduled))]
    for segment_idx in range(1, num_segments):
        before, gone = held[-1], set()
        if request.keep is not None:
            scores = score(request, before)
            for start, end in request.pools:
                alive = [token for token in before if start <= token < end]
                count = math.floor((end - start) * request.keep[segment_idx - 1])
                ranked = sorted(alive, key=lambda token: (-scores[token], token))
                gone.update(ranked[count:])
                is_chosen_now = request.computed == 0 and 0 < count < len(ranked)
                if is_chosen_now and scores[ranked[count - 1]] - scores[ranked[count]] < 1e-6:
                    raise TooClose
        held.append([token for token in before if token not in gone])
    return held


def step_rows(request: Request, held: list[int]) -> list[tuple[int, int]]:
    """The rows that this step computes in a segment, as (token, position)."""
    return [(token, position) for position, token in enumerate(held) if token >= request.computed]


class FakeAttention:
    """Makes queries, keys and values of rows, and hands them to its kernel."""

    def __init__(self, layer: FakeLayer) -> None:
        self.layer = layer
        self.attn = SimpleNamespace(head_size=HEAD_DIM, impl=SimpleNamespace(scale=HEAD_DIM**-0.5))

    def __call__(self, positions: torch.Tensor, rows: torch.Tensor) -> None:
        query, key, value = (rows @ self.layer.weight).split([HEADS * HEAD_DIM, *[KV_HEADS * HEAD_DIM] * 2], dim=-1)
        self.attn(self.layer.rotate(positions, query), self.layer.rotate(positions, key), value)


class FakeLayer:
    """The parts of a decoder layer that scoring uses, and the same computation in loops."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = 0.4 * torch.randn(HIDDEN_SIZE, (HEADS + 2 * KV_HEADS) * HEAD_DIM, generator=generator)
        self.tokens = torch.randn(16, MOST_TOKENS, HIDDEN_SIZE, generator=generator)  # for each request of a step
        self.self_attn = FakeAttention(self)

    def input_layernorm(self, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = rows + residual
        return rows / rows.abs().mean(dim=-1, keepdim=True), rows

    def rotate(self, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Each pair of a head's halves, rotated by its position."""
        first, second = rows.unflatten(-1, (-1, 2, HEAD_DIM // 2)).unbind(dim=-2)
        angle = positions[:, None, None] * torch.tensor([1.0, 0.1])
        turned = first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()
        return torch.stack(turned, dim=-2).flatten(1)

    def naive_score(self, request_idx: int) -> Score:
        def score(request: Request, before: list[int]) -> dict[int, float]:
            tokens = self.tokens[request_idx, before]
            states = self.input_layernorm(tokens, torch.zeros_like(tokens))[0] @ self.weight
            positions = torch.arange(len(before))
            query, key, _ = states.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], dim=-1)
            query = self.rotate(positions, query).view(-1, HEADS, HEAD_DIM).double()
            key = self.rotate(positions, key).view(-1, KV_HEADS, HEAD_DIM).double()
            total = torch.zeros(len(before), dtype=torch.float64)
            for token in request.guiding():
                row = before.index(token)
                for head in range(HEADS):
                    logits = key[: row + 1, head * KV_HEADS // HEADS] @ query[row, head] / math.sqrt(HEAD_DIM)
                    total[: row + 1] += logits.softmax(dim=0) / HEADS / len(request.guiding())
            return dict(zip(before, total.tolist(), strict=True))

        return score


def common_metadata(requests: list[Request], block_table: torch.Tensor) -> CommonAttentionMetadata:
    """The step as vLLM's runner describes it, without drops."""
    scheduled = [request.scheduled for request in requests]
    starts = torch.tensor([0, *accumulate(scheduled)], dtype=torch.int32)
    seq_lens = torch.tensor([request.computed + request.scheduled for request in requests], dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts.clone(),
        seq_lens=seq_lens,
        num_reqs=len(requests),
        num_actual_tokens=sum(scheduled),
        max_query_len=max(scheduled),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=block_table,
        slot_mapping=torch.full((sum(scheduled),), -7),
        seq_lens_cpu_upper_bound=seq_lens.clone(),
        _num_computed_tokens_cache=torch.zeros(1),
        _token_to_req_indices_cache=torch.zeros(1),
    )


def block_tables(num_requests: int, segment_idx: int) -> torch.Tensor:
    """Blocks of every request: all different, in random order."""
    num_blocks = MOST_TOKENS // BLOCK_SIZE
    blocks = torch.randperm(num_requests * num_blocks, generator=torch.Generator().manual_seed(segment_idx))
    return blocks.view(num_requests, num_blocks).int()


def layer_name(segment_idx: int) -> str:
    return f"layer {segment_idx}"


def begun_step(
    requests: list[Request],
    num_segments: int,
    tables: list[torch.Tensor] | None = None,
    graphs: CUDAGraphMode = CUDAGraphMode.NONE,
) -> CurrentStep:
    """A step as a runner's hook begins it, with one KV-cache group per segment."""
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=10, max_num_batched_tokens=10 * MOST_TOKENS),
        compilation_config=SimpleNamespace(cudagraph_mode=graphs),
    )
    groups = [
        SimpleNamespace(kv_cache_spec=SimpleNamespace(segment_idx=idx), layer_names=[layer_name(idx)])
        for idx in range(num_segments)
    ]
    step = CurrentStep(num_segments, config)
    tables = tables or [block_tables(len(requests), idx) for idx in range(num_segments)]
    step.allocate(SimpleNamespace(kv_cache_groups=groups), tables, [BLOCK_SIZE] * num_segments)
    common = common_metadata(requests, tables[0])
    unpadded = [request for request in requests if request is not PADDING]
    step.begin(*scheduled(unpadded, num_segments), common.seq_lens, common.num_actual_tokens)
    return step


def check_segment(step: CurrentStep, requests: list[Request], segment_idx: int, held: list[list[int]]) -> None:
    block_table = block_tables(len(requests), segment_idx)
    rows = [step_rows(request, tokens) for request, tokens in zip(requests, held, strict=True)]
    counts, positions = [len(part) for part in rows], [position for part in rows for _, position in part]
    starts = [0, *accumulate(counts)]
    slots = [
        int(block_table[idx, position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
        for idx, part in enumerate(rows)
        for _, position in part
    ]
    seq_lens = list(map(len, held))

    view = segment_metadata(common_metadata(requests, block_table), step, layer_name(segment_idx))
    assert view.query_start_loc.tolist() == view.query_start_loc_cpu.tolist() == starts
    assert view.seq_lens.tolist() == view.seq_lens_cpu_upper_bound.tolist() == seq_lens
    assert view.seq_lens.dtype == view.query_start_loc.dtype == view.query_start_loc_cpu.dtype == torch.int32
    assert (view.max_query_len, view.max_seq_len, view.num_actual_tokens) == (max(counts), max(seq_lens), sum(counts))
    assert view.positions.tolist() == step.buffers.positions[segment_idx, : sum(counts)].tolist() == positions
    assert view.slot_mapping.tolist() == slots
    assert view.slot_mapping.dtype == torch.int64
    assert view._num_computed_tokens_cache is view._token_to_req_indices_cache is None
    assert view.compute_num_computed_tokens().tolist() == [n - count for n, count in zip(seq_lens, counts, strict=True)]


def check_step(requests: list[Request], num_segments: int) -> None:
    """Compare every segment and boundary of a step with token lists, in which the fake layer's scores choose."""
    layer = FakeLayer()
    step = begun_step(requests, num_segments)
    all_held = [held_tokens(request, num_segments, layer.naive_score(idx)) for idx, request in enumerate(requests)]
    if step.layout is None:
        assert all(len(set(map(len, held))) == 1 for held in all_held)
        return
    before: list[tuple[int, int]] = []
    for segment_idx in range(num_segments):
        held = [segments[segment_idx] for segments in all_held]
        check_segment(step, requests, segment_idx, held)
        rows = [(idx, token) for idx, request in enumerate(requests) for token, _ in step_rows(request, held[idx])]
        if segment_idx > 0:
            boundary = step.boundaries[segment_idx - 1]
            if boundary is None:
                assert rows == before
            else:
                positions = step.buffers.positions[segment_idx - 1]
                states = layer.tokens[[idx for idx, _ in before], [token for _, token in before]]
                places = torch.arange(len(states))
                state = text_stage.DecoderState(positions[: len(states)], states * 0.25, states * 0.75, places)
                with mock.patch.object(ranks, "get_tensor_model_parallel_world_size", return_value=1):
                    kept, _ = text_stage.surviving_rows(boundary, layer, Decoder(), state)
                assert isinstance(layer.self_attn.attn, SimpleNamespace), "the kernel is back"
                assert [before[row] for row in kept.tolist()] == rows
        before = rows


# Rows: text 0-2, pool 3-9, text 10-12, pool 13-17, text 18-20.
TWO_POOLS = Request(21, 21, pools=((3, 10), (13, 18)), keep=(0.6, 0.3))
STEPS = {
    "one prefill that drops": [TWO_POOLS],
    "guided by the last row": [Request(12, 12, pools=((1, 10),), keep=(0.5, 0.25), guide="last")],
    "guided by salient rows": [Request(21, 21, 0, TWO_POOLS.pools, (0.5, 0.5), "salient", (11, 18))],
    "drops everything": [Request(9, 9, pools=((0, 8),), keep=(0.0, 0.0))],
    "drops everything late": [Request(9, 9, pools=((0, 8),), keep=(0.5, 0.0))],
    "drops late": [Request(9, 9, pools=((2, 8),), keep=(1.0, 0.5))],
    "drops once": [Request(9, 9, pools=((2, 8),), keep=(0.5, 0.5))],
    "resumed with outputs": [Request(21, 26, 0, TWO_POOLS.pools, (0.6, 0.0))],
    "decodes what dropped": [Request(21, 1, 24, TWO_POOLS.pools, (0.6, 0.0)), Request(9, 1, 9, ((2, 8),), (0.5, 0.5))],
    "decodes several at once": [Request(21, 3, 21, TWO_POOLS.pools, (0.6, 0.0)), Request(7, 2, 9)],
    "nothing drops": [Request(13, 13, pools=((2, 9),)), Request(7, 1, 12), Request(30, 8, 16)],
    "mixed": [
        Request(7, 1, 12),
        TWO_POOLS,
        Request(30, 8, 16),
        Request(21, 1, 30, TWO_POOLS.pools, (0.5, 0.0)),
        Request(13, 13, pools=((2, 9),)),
        Request(21, 25, 0, TWO_POOLS.pools, (0.9, 0.1), "last"),
        Request(9, 9, pools=((0, 8),), keep=(0.0, 0.0)),
        PADDING,
        PADDING,
    ],
}


@pytest.mark.parametrize("requests", STEPS.values(), ids=STEPS.keys())
def test_a_step_matches_the_token_lists(requests: list[Request]):
    check_step(requests, num_segments=3)


@st.composite
def any_request(draw: st.DrawFn, num_segments: int) -> Request:
    pools, end = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 3))):
        start = end
        end = start + draw(st.integers(1, 7))
        pools.append((start, end))
        end += draw(st.integers(1, 3))  # text
    num_prompt = end + draw(st.integers(1, 3))
    keep = sorted(draw(st.lists(st.floats(0, 1), min_size=num_segments - 1, max_size=num_segments - 1)), reverse=True)
    drops = bool(pools) and draw(st.booleans())
    computed = draw(st.sampled_from([0, num_prompt, num_prompt + 3] if drops else [0, 1, num_prompt - 1, num_prompt]))
    scheduled = num_prompt + draw(st.integers(0, 4)) if computed == 0 else draw(st.integers(1, 12))
    text = [token for token in range(num_prompt) if not any(start <= token < end for start, end in pools)]
    guide = tuple(draw(st.lists(st.sampled_from(text), max_size=3)))
    how = draw(st.sampled_from(["all", "last", "salient"]))
    return Request(num_prompt, scheduled, computed, tuple(pools), tuple(keep) if drops else None, how, guide)


@st.composite
def any_step(draw: st.DrawFn) -> tuple[list[Request], int]:
    num_segments = draw(st.integers(2, 4))
    requests = draw(st.lists(any_request(num_segments), min_size=1, max_size=5))
    return requests + [PADDING] * draw(st.integers(0, 2)), num_segments


@settings(max_examples=100)
@given(any_step())
def test_any_generated_step_matches_the_token_lists(step: tuple[list[Request], int]):
    try:
        check_step(*step)
    except TooClose:
        reject()


def test_a_step_has_the_numbers_worked_out_by_hand():
    """A prefill of 10 rows that drops 4 of 6 visual rows, together with a decoding request that has dropped 3."""
    requests = [Request(10, 10, pools=((2, 8),), keep=(0.4,)), Request(9, 1, 11, ((1, 7),), (0.5,))]
    block_table = torch.tensor([[5, 1, 9], [7, 0, 2]], dtype=torch.int32)
    step = begun_step(requests, 2, [block_table, block_table])
    view = segment_metadata(common_metadata(requests, block_table), step, layer_name(1))

    assert view.query_start_loc.tolist() == [0, 6, 7]
    assert view.seq_lens.tolist() == [6, 9]
    assert view.positions.tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert view.slot_mapping.tolist() == [20, 21, 22, 23, 4, 5, 8]
    assert step.buffers.slot_mapping[1, 7:11].tolist() == [-1] * 4
    (boundary,) = step.boundaries
    assert boundary.rows[[0, 1, 4, 5, 6]].tolist() == [0, 1, 8, 9, 10]
    assert boundary.key_rows.tolist() == list(range(10))
    assert {name: torch.as_tensor(value).tolist() for name, value in boundary.ranked._asdict().items()} == {
        "guiding_keys": [8, 9],
        "query_positions": [8, 9],
        "cu_queries": [0, 2],
        "cu_keys": [0, 10],
        "pool_start": [2],
        "pool_length": [6],
        "pool_request": [0],
        "num_keep": [2],
        "first_row": [2],
        "target": [2],
        "max_queries": 2,
        "max_keys": 10,
        "max_pool": 6,
    }


def test_pools_that_stay_or_go_whole_are_not_scored():
    requests = [Request(9, 9, pools=((2, 8),), keep=(0.0,)), Request(5, 5)]
    (boundary,) = StepLayout(*scheduled(requests, 2), 2).boundaries

    assert boundary.ranked is None
    assert boundary.rows.tolist() == [0, 1, 8, 9, 10, 11, 12, 13]


def test_a_step_without_a_prefill_that_drops_has_no_boundary():
    requests = [Request(21, 1, 24, TWO_POOLS.pools, (0.6, 0.0)), Request(40, 40, pools=((3, 9),))]
    layout = StepLayout(*scheduled(requests, 3), 3)

    assert layout.boundaries == (None, None)
    assert layout.has_drops


def test_requests_that_never_dropped_have_no_drops():
    assert not StepLayout(*scheduled([Request(40, 40), PADDING], 3), 3).has_drops


def test_everything_reaches_the_device_in_one_copy(monkeypatch: pytest.MonkeyPatch):
    copies = mock.Mock(side_effect=dispatch.to_device)
    monkeypatch.setattr(dispatch, "to_device", copies)
    layout = StepLayout(*scheduled(STEPS["mixed"], 3), 3)

    moved = move_layout(layout, torch.device("cpu"))

    copies.assert_called_once()
    assert moved.starts.tolist() == layout.starts.tolist()
    for boundary, planned in zip(moved.boundaries, layout.boundaries, strict=True):
        assert [array.tolist() for array in boundary.pack()] == [array.tolist() for array in planned.pack()]


@pytest.mark.parametrize("knows_upper_bound", [True, False], ids=["upper bound", "no upper bound"])
def test_the_shared_metadata_is_not_modified(knows_upper_bound: bool):
    requests, block_table = STEPS["mixed"], block_tables(9, 0)
    step = begun_step(requests, 3)
    common, untouched = common_metadata(requests, block_table), common_metadata(requests, block_table)
    if not knows_upper_bound:
        common.seq_lens_cpu_upper_bound = untouched.seq_lens_cpu_upper_bound = None
    views = [segment_metadata(common, step, layer_name(segment_idx)) for segment_idx in (2, 1, 0)]

    assert (views[0].seq_lens_cpu_upper_bound is None) is not knows_upper_bound
    for name, value in vars(untouched).items():
        now = getattr(common, name)
        assert now.equal(value) if isinstance(value, torch.Tensor) else now == value, name


def test_without_drops_the_metadata_is_vllms_own():
    requests = [Request(7, 7)]
    common = common_metadata(requests, block_tables(1, 0))

    assert segment_metadata(common, begun_step(requests, 3), layer_name(2)) is common


def test_a_graph_reads_the_same_memory_for_other_requests():
    """Captured for requests that drop nothing, and replayed for others, padded to the graph's size."""
    captured = [Request(5, 1, 5)] * 3
    replayed = [Request(21, 1, 24, TWO_POOLS.pools, (0.6, 0.0)), Request(7, 1, 12), PADDING]
    tables = [block_tables(3, idx) for idx in range(3)]
    step = begun_step(captured, 3, tables, CUDAGraphMode.FULL_DECODE_ONLY)
    read = [segment_metadata(common_metadata(captured, tables[idx]), step, layer_name(idx)) for idx in range(3)]
    seq_lens = torch.tensor([25, 13, 0], dtype=torch.int32)
    step.begin(*scheduled(replayed[:2], 3), seq_lens, num_rows=3)

    dropped = [0, 5, 12]  # pools of 7 and 5 keep 4 and 3, then none
    for segment_idx, view in enumerate(read):
        assert view.max_seq_len == 6  # the value at the capture
        assert view.query_start_loc.tolist() == [0, 1, 2, 2]
        assert view.seq_lens.tolist() == [25 - dropped[segment_idx], 13, 0]
        positions = [24 - dropped[segment_idx], 12]
        assert view.positions.tolist() == [*positions, 0]
        blocks = [int(tables[segment_idx][row, position // BLOCK_SIZE]) for row, position in enumerate(positions)]
        slots = [block * BLOCK_SIZE + position % BLOCK_SIZE for block, position in zip(blocks, positions, strict=True)]
        assert view.slot_mapping.tolist() == [*slots, -1]


def buffers(step: CurrentStep, num_requests: int, num_rows: int) -> list[list]:
    parts = step.buffers
    sizes = {"query_start_loc": num_requests + 1, "seq_lens": num_requests, "positions": num_rows}
    return [getattr(parts, name)[:, :size].tolist() for name, size in (sizes | {"slot_mapping": num_rows}).items()]


@settings(max_examples=100)
@given(st.data())
def test_a_step_after_others_is_laid_out_as_if_it_were_the_first(data: st.DataObject):
    """Whether the layout of the step before is used again or not."""
    requests = data.draw(st.lists(any_request(3), min_size=1, max_size=4))
    tables = [block_tables(len(requests), idx) for idx in range(3)]
    used = begun_step(requests, 3, tables, CUDAGraphMode.FULL_DECODE_ONLY)
    for _ in range(3):
        grown = [replace(old, computed=old.computed + old.scheduled, scheduled=1) for old in requests]
        change = st.sampled_from([requests, grown, grown[::-1], [replace(old, keep=None) for old in grown]])
        requests = data.draw(change)
        common = common_metadata(requests, tables[0])
        used.begin(*scheduled(requests, 3), common.seq_lens, common.num_actual_tokens)
        fresh = begun_step(requests, 3, tables, CUDAGraphMode.FULL_DECODE_ONLY)

        assert (used.layout is None) == (fresh.layout is None)
        if fresh.layout is not None:
            sizes = len(requests), common.num_actual_tokens
            assert buffers(used, *sizes) == buffers(fresh, *sizes)
            assert used.layout.dropped.tolist() == fresh.layout.dropped.tolist()
            assert used.layout.starts.tolist() == fresh.layout.starts.tolist()
            assert used.layout.prefills == fresh.layout.prefills
            assert [b and b.rows.tolist() for b in used.boundaries] == [b and b.rows.tolist() for b in fresh.boundaries]


def test_decoding_steps_share_one_layout():
    requests = [Request(21, 1, 24, TWO_POOLS.pools, (0.6, 0.0)), Request(7, 1, 12)]
    step = begun_step(requests, 3)
    layout = step.layout
    grown = [replace(request, computed=request.computed + 1) for request in requests]
    step.begin(*scheduled(grown, 3), common_metadata(grown, block_tables(2, 0)).seq_lens, 2)

    assert step.layout is layout
    assert step.buffers.positions[2, :2].tolist() == [13, 13]  # 25 less 12 dropped, and 13


def test_a_resumed_prompt_does_not_take_over_the_layout_of_as_many_outputs():
    outputs = Request(9, 12, 20, ((2, 8),), (0.5,))
    step = begun_step([outputs], 2)
    resumed = replace(outputs, computed=0)
    step.begin(*scheduled([resumed], 2), torch.tensor([12], dtype=torch.int32), 12)

    assert step.layout.starts.tolist() == [[0, 12], [0, 9]]
    assert [len(boundary.rows) for boundary in step.boundaries] == [9]


def test_a_batch_without_requests_has_no_slots():
    requests = [Request(5, 1, 5)] * 3
    step = begun_step(requests, 3, graphs=CUDAGraphMode.FULL_DECODE_ONLY)
    assert step.buffers.slot_mapping[:, :3].min() >= 0
    seq_lens = torch.ones(3, dtype=torch.int32)
    step.begin([None] * 3, np.zeros(3), np.ones(3, dtype=np.int64), seq_lens, 3, is_dummy=True)

    assert step.buffers.slot_mapping[:, :3].tolist() == [[-1] * 3] * 3
    assert step.buffers.query_start_loc[:, :4].tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("case", golden_cases(), ids=str)
def test_the_authors_rows_are_kept(case: GoldenCase):
    """With scores that rank the authors' kept rows first, every boundary gives the authors' rows."""
    num_segments = 1 + len(case.boundaries)
    pools = ((case.image_start, case.image_start + case.num_entering),)
    request = Request(
        case.prefill_len, case.prefill_len, 0, pools, tuple(case.keep), "salient", tuple(case.guiding_rows)
    )
    layout = StepLayout(*scheduled([request], num_segments), num_segments)
    moved = move_layout(layout, torch.device("cpu")).boundaries
    for segment_idx, (boundary, rows) in enumerate(zip(moved, case.kept_rows_per_stage, strict=True), 1):
        if boundary is None:
            assert rows == list(range(layout.num_rows[segment_idx]))
            continue
        if boundary.ranked is not None:
            score = torch.isin(boundary.key_rows, torch.tensor(rows)).float()
            keep_highest(score, boundary.ranked, boundary.rows)
        assert boundary.rows.tolist() == rows
