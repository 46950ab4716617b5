"""Stage 1 on images small enough to work out by hand."""

from __future__ import annotations

import pytest
import torch

from tests.oracle.vision_stage import TowerFeatures, compress

# Rows are powers of two, so that a sum shows which rows were added: CLS 1, patches 2, 4, 8, ...
HIDDEN = 2.0 ** torch.arange(8)[:, None]
NORTH, EAST = [0.0, 1.0], [1.0, 0.0]


def image(score: list[float], metric: list[list[float]]) -> TowerFeatures:
    num_rows = 1 + len(score)
    return TowerFeatures(HIDDEN[:num_rows], torch.tensor(score), torch.tensor([[0.0, 0.0], *metric]))


def test_dominant_tokens_keep_patch_order_and_indices_keep_score_order():
    compressed = compress(image([0.1, 0.4, 0.2, 0.9], [NORTH] * 4), dominant=3, contextual=0, cluster_width=4)

    assert compressed.dominant_patch_indices == [3, 1]
    assert compressed.features.flatten().tolist() == [1.0, 4.0, 16.0]


def test_equal_scores_keep_the_lower_patch():
    compressed = compress(image([0.5, 0.5, 0.5, 0.5], [NORTH] * 4), dominant=3, contextual=0, cluster_width=4)

    assert compressed.dominant_patch_indices == [0, 1]


def test_narrow_pool_takes_anchors_by_score_and_leaves_patches_out():
    # Rest by score: patches 4, 2, 5, 1, 3; width 2 takes the first four, of which the 1st and 3rd are anchors.
    score = [0.9, 0.3, 0.7, 0.1, 0.8, 0.5]
    metric = [NORTH, EAST, EAST, NORTH, NORTH, EAST]
    compressed = compress(image(score, metric), dominant=2, contextual=2, cluster_width=2)

    hidden = HIDDEN[1:].flatten().tolist()
    north = hidden[4]  # no patch joins
    east = hidden[5] + (hidden[2] + hidden[1]) / 2
    assert compressed.features.flatten().tolist() == [1.0, hidden[0], north, east]


def test_unlimited_pool_takes_anchors_by_place_and_merges_every_patch():
    # Rest by place: patches 1, 2, 3, 4, 5. Anchors are the 1st and the 3rd; the 5th does not become a third one.
    score = [0.9, 0.3, 0.7, 0.1, 0.8, 0.5]
    metric = [NORTH, EAST, EAST, NORTH, NORTH, EAST]
    compressed = compress(image(score, metric), dominant=2, contextual=2, cluster_width=None)

    hidden = HIDDEN[1:].flatten().tolist()
    east = hidden[1] + (hidden[2] + hidden[5]) / 2
    north = hidden[3] + hidden[4]
    assert compressed.features.flatten().tolist() == [1.0, hidden[0], east, north]


def test_members_join_by_direction_not_by_length():
    metric = [[0.0, 1.0], [100.0, 10.0], [1.0, 9.0], [9.0, 1.0]]
    compressed = compress(image([0.4, 0.3, 0.2, 0.1], metric), dominant=1, contextual=2, cluster_width=2)

    hidden = HIDDEN[1:].flatten().tolist()  # anchors: patches 0 and 2
    assert compressed.features.flatten().tolist() == [1.0, hidden[0], hidden[2] + (hidden[1] + hidden[3]) / 2]


def test_every_patch_can_be_kept():
    compressed = compress(image([0.1, 0.4, 0.2], [NORTH] * 3), dominant=4, contextual=0, cluster_width=4)

    assert compressed.features.equal(HIDDEN[:4])


@pytest.mark.parametrize(("dominant", "contextual"), [(0, 1), (1, -1), (6, 0), (3, 3)])
def test_counts_that_do_not_fit_are_refused(dominant: int, contextual: int):
    with pytest.raises(ValueError, match="do not fit 4 patches"):
        compress(image([0.1, 0.4, 0.2, 0.9], [NORTH] * 4), dominant, contextual, cluster_width=4)
