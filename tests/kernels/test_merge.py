"""Stage 1's selection against the algorithm's steps in loops, one image and one token at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from duet_kernels import clusters, select_and_merge
from duet_kernels.dispatch import implementation

UNLIMITED = 0


@pytest.fixture(params=["reference", "triton"], autouse=True)
def implemented(request: pytest.FixtureRequest, poisoned: None) -> Iterator[str]:
    with implementation(request.param):
        yield request.param


Selection = tuple[list[int], list[tuple[int, list[int]]]]  # dominant patches ascending; each anchor with its members


def naive_selection(score: list[float], metric: torch.Tensor, dominant: int, contextual: int, width: int) -> Selection:
    """The selection of one image, whose `metric` and count of dominant tokens are without CLS."""
    num_patches = len(score)
    by_score = sorted(range(num_patches), key=lambda patch: (-score[patch], patch))
    chosen = sorted(by_score[:dominant])
    rest = [patch for patch in range(num_patches) if patch not in chosen]
    if width == UNLIMITED:
        pool = rest
    else:
        size = min(max(1, width * contextual), len(rest))
        pool = sorted(rest, key=lambda patch: (-score[patch], patch))[:size]
    step = max(1, len(pool) // max(1, contextual))
    anchors = pool[::step][:contextual]
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    unit = [row / max(row.norm().item(), 1e-12) for row in metric.double()]
    for patch in pool:
        if anchors and patch not in anchors:
            dots = [float(unit[patch] @ unit[anchor]) for anchor in anchors]
            members[anchors[dots.index(max(dots))]].append(patch)
    return chosen, list(members.items())


def naive_tokens(patches: torch.Tensor, selection: Selection) -> torch.Tensor:
    """`[dominant + contextual, dim]` of one image without CLS, in its dtype."""
    dominant, clusters = selection
    rows = patches.float()
    tokens = rows[dominant]
    for anchor, members in clusters:
        token = rows[anchor]
        if members:
            token = token + sum(rows[member] for member in members) / len(members)
        tokens = torch.cat([tokens, token[None]])
    return tokens.to(patches.dtype)


def one_hot(images: int, patches: int) -> torch.Tensor:
    """Hidden rows whose sums show which rows were added: exact sets of indices in every dtype."""
    return torch.eye(1 + patches).repeat(images, 1, 1)


def random_inputs(images: int, patches: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, patches, generator=generator), torch.randn(images, 1 + patches, 5, generator=generator)


def check(
    device: torch.device,
    hidden: torch.Tensor,
    score: torch.Tensor,
    metric: torch.Tensor,
    settings: list[tuple[int, int, int]],
    **close: float,
) -> None:
    """The images, and again without their class tokens those that keep anything then."""
    check_call(device, hidden, score, metric, settings, has_cls=True, **close)
    fit = [idx for idx, (dominant, _, _) in enumerate(settings) if dominant > 1]
    without = [(settings[idx][0] - 1, *settings[idx][1:]) for idx in fit]
    check_call(device, hidden[fit][:, 1:], score[fit], metric[fit][:, 1:], without, has_cls=False, **close)


def check_call(
    device: torch.device,
    hidden: torch.Tensor,
    score: torch.Tensor,
    metric: torch.Tensor,
    settings: list[tuple[int, int, int]],
    has_cls: bool,
    **close: float,
) -> None:
    hidden, score, metric = (tensor.to(device) for tensor in (hidden, score, metric))
    tokens, by_score, places = select_and_merge(hidden, score, metric, settings, has_cls=has_cls)

    assert tokens.dtype == hidden.dtype
    assert by_score.dtype == places.dtype == torch.int64
    assert places.device == hidden.device
    num_cls = int(has_cls)
    chosen = [
        naive_selection(scores, rows[num_cls:], dominant - num_cls, contextual, width)
        for scores, rows, (dominant, contextual, width) in zip(score.tolist(), metric.cpu(), settings, strict=True)
    ]
    expected = [
        torch.cat([rows[:num_cls], naive_tokens(rows[num_cls:], selection)])
        for rows, selection in zip(hidden.cpu(), chosen, strict=True)
    ]
    expected = torch.cat([hidden.cpu()[:0, 0], *expected])
    torch.testing.assert_close(tokens.cpu(), expected, **(close or {"rtol": 0, "atol": 1e-6}))
    assert clusters(score, metric, settings, has_cls=has_cls) == [
        (dominant, [[anchor, *sorted(members)] for anchor, members in merged]) for dominant, merged in chosen
    ]
    stands_at = [[*[-1] * num_cls, *dominant, *(anchor for anchor, _ in merged)] for dominant, merged in chosen]
    assert places.tolist() == [place for image in stands_at for place in image]
    for ranked, scores in zip(by_score.tolist(), score.tolist(), strict=True):
        assert ranked == sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch))


ONE_UNIT = {torch.float32: 2.0**-20, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # in the last place, or more


EDGES = {
    "CLS only": (1, 0, 4),
    "CLS only, unlimited": (1, 0, UNLIMITED),
    "all dominant": (10, 0, 4),
    "all but one dominant": (9, 0, 1),
    "the one left is an anchor": (9, 1, 4),
    "every patch an anchor": (1, 9, 1),
    "every patch an anchor, wide": (1, 9, 100),
    "every patch an anchor, unlimited": (1, 9, UNLIMITED),
    "every rest patch an anchor": (4, 6, 4),
    "every rest patch an anchor, unlimited": (4, 6, UNLIMITED),
    "one anchor, one pool member": (3, 1, 1),
    "one anchor takes all": (3, 1, UNLIMITED),
    "usual": (3, 2, 3),
    "width beyond the rest": (4, 5, 1000),
    "pool cut by the rest, uneven step": (2, 3, 4),
    "uneven step, unlimited": (2, 3, UNLIMITED),
    "no dominant patch": (1, 4, 2),
}


@pytest.mark.parametrize("settings", EDGES.values(), ids=EDGES.keys())
def test_edge_cases_alone_equal_the_loop(device: torch.device, settings: tuple[int, int, int]):
    check(device, one_hot(1, 9), *random_inputs(1, 9), [settings])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_edge_cases_in_one_batch_equal_the_loop(device: torch.device, dtype: torch.dtype):
    settings = list(EDGES.values())
    score, metric = random_inputs(len(settings), 9)

    check(device, one_hot(len(settings), 9).to(dtype), score, metric.to(dtype), settings, rtol=ONE_UNIT[dtype], atol=0)


@pytest.mark.parametrize("patches", [9, 37, 64])
def test_batch_equals_its_members_alone(device: torch.device, implemented: str, patches: int):
    settings = [(1, 0, 4), (5, 2, 2), (patches + 1, 0, 4), (2, 3, UNLIMITED), (3, 4, 50), (1, patches, 1)]
    score, metric = random_inputs(len(settings), patches)
    hidden = torch.randn(len(settings), 1 + patches, 7, generator=torch.Generator().manual_seed(3))
    hidden, score, metric = (tensor.to(device) for tensor in (hidden, score, metric))
    tokens, by_score, _ = select_and_merge(hidden, score, metric, settings)

    members = [
        select_and_merge(hidden[i : i + 1], score[i : i + 1], metric[i : i + 1], [counts])
        for i, counts in enumerate(settings)
    ]
    atol = 0 if implemented == "triton" else 1e-6
    torch.testing.assert_close(tokens, torch.cat([alone for alone, _, _ in members]), rtol=0, atol=atol)
    assert by_score.equal(torch.cat([ranked for _, ranked, _ in members]))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]:
    """Scores with many ties, and any settings that fit the image."""
    patches = draw(st.integers(1, 14))
    settings = []
    for _ in range(draw(st.integers(1, 4))):
        dominant = draw(st.integers(1, patches + 1))
        settings.append(
            (dominant, draw(st.integers(0, patches + 1 - dominant)), draw(st.sampled_from([0, 1, 2, 3, 4, 99])))
        )
    num_scores = len(settings) * patches
    score = draw(st.lists(st.integers(-2, 2), min_size=num_scores, max_size=num_scores))
    metric = random_inputs(len(settings), patches, seed=draw(st.integers(0, 2**20)))[1]
    return torch.tensor(score, dtype=torch.float32).view(-1, patches), metric, settings


@hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=batches())
def test_any_batch_equals_the_loop(
    device: torch.device, batch: tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]
):
    score, metric, settings = batch

    check(device, one_hot(*score.shape), score, metric, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_real_rows_are_summed_in_float32(device: torch.device, dtype: torch.dtype):
    settings = [(12, 3, 4), (6, 5, UNLIMITED), (1, 2, 100)]
    score, metric = random_inputs(3, 49)
    hidden = 30 * torch.randn(3, 50, 11, generator=torch.Generator().manual_seed(2))

    check(device, hidden.to(dtype), score, metric, settings, rtol=ONE_UNIT[dtype], atol=1e-5)


@pytest.mark.parametrize("metric_dim", [3, 80])
def test_several_blocks_of_patches_and_anchors(device: torch.device, metric_dim: int):
    """340 candidates for 35 anchors, ordered by place and by score."""
    generator = torch.Generator().manual_seed(5)
    score = torch.rand(2, 429, generator=generator)
    metric = torch.randn(2, 430, metric_dim, generator=generator)
    hidden = torch.randn(2, 430, 12, generator=generator)

    check(device, hidden, score, metric, [(90, 35, UNLIMITED), (90, 35, 9)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dim", [1023, 1024, 2050])
def test_rows_of_several_blocks(device: torch.device, dim: int):
    hidden = torch.randn(2, 25, dim, generator=torch.Generator().manual_seed(6))

    check(device, hidden, *random_inputs(2, 24), [(9, 2, 4), (10, 1, UNLIMITED)])


@pytest.mark.parametrize("width", [UNLIMITED, 100])
def test_one_anchor_of_many_takes_every_member(device: torch.device, width: int):
    """More than one block of equally near anchors: the first anchor gets every member."""
    score, hidden = random_inputs(1, 100)[0], one_hot(1, 100)

    check(device, hidden, score, torch.ones(1, 101, 4), [(1, 40, width)])


def test_strided_inputs(device: torch.device):
    settings = [(4, 2, 2), (3, 3, UNLIMITED)]
    score, metric = (tensor.to(device) for tensor in random_inputs(2, 11))
    hidden = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(4)).to(device).transpose(1, 2)
    expected, _, _ = select_and_merge(hidden.contiguous(), score, metric, settings)
    score = torch.cat([torch.full((2, 1), 9.0, device=device), score], dim=1)[:, 1:]
    metric = metric.repeat_interleave(2, dim=-1)[..., ::2]
    assert not any(tensor.is_contiguous() for tensor in (hidden, score, metric))

    torch.testing.assert_close(select_and_merge(hidden, score, metric, settings)[0], expected)


def test_equal_scores_keep_the_lower_patch(device: torch.device):
    """Minus zero is zero."""
    score = torch.tensor([[0.0, -0.0, 0.0, 0.0, 0.0, -0.0]])
    inputs = (tensor.to(device) for tensor in (one_hot(1, 6), score, random_inputs(1, 6)[1]))
    tokens, by_score, _ = select_and_merge(*inputs, [(4, 1, 1)])

    assert tokens.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]
    assert by_score.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("patches", [8, 40])
def test_scores_that_are_no_numbers_rank_as_torch_ranks_them(device: torch.device, patches: int):
    """Even with NaN scores, an image's rows come from its own patches."""
    score, metric = (tensor.to(device) for tensor in random_inputs(1, patches))
    score[0, [1, 4, 6]] = torch.tensor([torch.nan, -torch.inf, torch.inf], device=device)
    score[0, -1] = -torch.nan
    tokens, by_score, _ = select_and_merge(one_hot(1, patches).to(device), score, metric, [(6, 2, 4)])

    assert by_score.equal(score.argsort(dim=1, descending=True, stable=True))
    assert tokens[:6].argmax(dim=1).tolist() == [0, *(1 + by_score[0, :5]).sort().values.tolist()]


def test_metrics_that_are_no_numbers_leave_the_dominant_rows(device: torch.device):
    score, _ = random_inputs(1, 9)
    metric = torch.full((1, 10, 5), torch.nan)
    inputs = (tensor.to(device) for tensor in (one_hot(1, 9), score, metric))
    tokens, by_score, _ = select_and_merge(*inputs, [(4, 3, 2)])

    assert tokens[:4].argmax(dim=1).tolist() == [0, *(1 + by_score[0, :3]).sort().values.tolist()]
    assert tokens.isfinite().all()


@pytest.mark.parametrize("metric_row", [[0.0, 0.0], [1.0, 0.0]], ids=["no direction", "same direction"])
def test_equally_near_anchors_give_the_member_to_the_first(device: torch.device, metric_row: list[float]):
    metric = torch.tensor([metric_row] * 5)[None]
    inputs = (tensor.to(device) for tensor in (one_hot(1, 4), torch.tensor([[4.0, 3.0, 2.0, 1.0]]), metric))
    tokens, _, _ = select_and_merge(*inputs, [(1, 2, 2)])

    assert tokens[1:].tolist() == [[0, 1, 0.5, 0, 0.5], [0, 0, 0, 1, 0]]


def test_a_metric_of_no_length_is_not_stretched(device: torch.device):
    """Patches 1 and 3 have the direction of anchor 0, whose length is below the 1e-12 of a normalisation."""
    metric = torch.tensor([[0.0, 0.0], [1e-13, 0.0], [1.0, 0.0], [0.5, 0.8], [1.0, 0.0]])[None]
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]])

    assert naive_selection(score[0].tolist(), metric[0, 1:], 0, 2, 2)[1] == [(0, []), (2, [1, 3])]
    check(device, one_hot(1, 4), score, metric, [(1, 2, 2)])


@pytest.mark.parametrize("settings", [(0, 1, 4), (1, -1, 4), (2, 4, 4), (6, 0, 4), (1, 1, -1)], ids=str)
def test_counts_that_do_not_fit_are_refused(settings: tuple[int, int, int]):
    score, metric = random_inputs(2, 4)

    with pytest.raises(AssertionError, match=r"dominant|contextual|width"):
        select_and_merge(one_hot(2, 4), score, metric, [(1, 0, 1), settings])


@pytest.mark.parametrize("settings", [(0, 1, 4), (1, -1, 4), (2, 3, 4), (5, 0, 4), (1, 1, -1)], ids=str)
def test_counts_that_do_not_fit_are_refused_without_cls(settings: tuple[int, int, int]):
    score, metric = random_inputs(2, 4)

    with pytest.raises(AssertionError, match=r"dominant|contextual|width"):
        select_and_merge(one_hot(2, 4)[:, 1:], score, metric[:, 1:], [(1, 0, 1), settings], has_cls=False)


@pytest.mark.parametrize(("images", "patches"), [(0, 4), (2, 0), (0, 0)], ids=str)
def test_no_images_or_no_patches(device: torch.device, images: int, patches: int):
    score, metric = (tensor.to(device) for tensor in random_inputs(images, patches))
    hidden = torch.randn(images, 1 + patches, 3, device=device)
    tokens, by_score, _ = select_and_merge(hidden, score, metric, [(1, 0, 4)] * images)

    assert tokens.equal(hidden[:, 0])
    assert by_score.shape == (images, patches)


def test_no_images_without_cls(device: torch.device):
    score, metric = (tensor.to(device) for tensor in random_inputs(0, 4))
    hidden = torch.randn(0, 4, 3, device=device)
    tokens, by_score, places = select_and_merge(hidden, score, metric[:, 1:], [], has_cls=False)

    assert tokens.shape == (0, 3)
    assert by_score.shape == (0, 4)
    assert places.shape == (0,)


def test_the_number_of_rows_needs_no_data():
    score, metric, hidden = (tensor.to("meta") for tensor in (*random_inputs(2, 9), one_hot(2, 9)))
    with implementation("reference"):
        tokens, _, _ = select_and_merge(hidden, score, metric, [(3, 2, 4), (1, 4, UNLIMITED)])

    assert tokens.shape == (10, 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("patches", [576, 4096])
def test_the_host_does_not_wait(device: torch.device, patches: int):
    settings = [(72, 30, 4), (54, 10, UNLIMITED), (170, 32, 4)]
    score = torch.rand(3, patches, device=device)
    metric = torch.randn(3, 1 + patches, 64, device=device)
    hidden = torch.randn(3, 1 + patches, 1024, device=device, dtype=torch.bfloat16)
    first, _, _ = select_and_merge(hidden, score, metric, settings)  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        again, _, _ = select_and_merge(hidden, score, metric, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert again.equal(first)
