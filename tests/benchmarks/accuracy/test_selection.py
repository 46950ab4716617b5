from __future__ import annotations

from importlib.metadata import distributions

import pytest
import torch

from benchmarks.accuracy import selection
from benchmarks.accuracy.selection import (
    OWN,
    PLUGIN_FOLDER,
    RANDOM_KEEP,
    UNIFORM_POOLING,
    grid,
    largest_grid,
    plugin_environment,
    pooled,
    random_keep,
    random_scores,
    says_in_log,
    uniform_pooling,
)
from duet_server.engine import model
from duet_server.engine.backbones.llava import Llava
from duet_server.engine.cut import Encoded
from duet_server.plan import Unit

# Two images of CLS, which is -1, and four patches; stage 1 cuts the first.
ROWS = torch.tensor([-1.0, 0, 1, 2, 3, -1.0, 10, 11, 12, 13]).unsqueeze(-1)
SCORE = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.4, 0.3, 0.2, 0.1])
UNITS = [Unit(2, 2, 1, 1, 4), Unit(2, 2)]


def values(rows):
    return rows[:, 0].tolist()


def test_random_keep_takes_the_highest_scores_in_place_order():
    assert values(random_keep(ROWS[1:5], SCORE[:4], 3)) == [1, 2, 3]


def test_pooling_averages_the_cells_of_a_grid():
    assert values(uniform_pooling(ROWS[1:5], SCORE[:4], 1)) == [1.5]
    assert values(uniform_pooling(ROWS[6:], SCORE[4:], 2)) == [11.0, 12.0]
    patches = torch.arange(16.0).unsqueeze(-1)
    assert pooled(patches, 4)[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled(patches, 6)[:, 0].tolist() == [2.5, 3.5, 4.5, 10.5, 11.5, 12.5]  # cells of a row overlap


def test_pooling_keeps_the_type_and_each_channel():
    patches = torch.stack([torch.arange(9), -torch.arange(9)], dim=1).to(torch.bfloat16)
    found = pooled(patches, 1)
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[4.0, -4.0]]


def test_random_scores_depend_only_on_the_pixels():
    pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    both = random_scores(pictures, 9)
    assert both.shape == (2, 9)
    assert torch.equal(random_scores(pictures[1:], 9), both[1:])
    assert not torch.equal(both[0], both[1])
    assert 0 <= both.min() < both.max() < 1


@pytest.mark.parametrize(
    ("num_cells", "expected"), [(1, (1, 1)), (9, (3, 3)), (45, (5, 9)), (190, (10, 19)), (7, (1, 7))]
)
def test_a_grid_is_as_square_as_can_be(num_cells, expected):
    assert grid(num_cells) == expected


@pytest.mark.parametrize(("budget", "num_cells"), [(47, 45), (31, 30), (15, 15), (10, 9), (40, 40), (63, 63), (1, 1)])
def test_the_largest_grid_within_a_budget(budget, num_cells):
    assert largest_grid(budget) == num_cells


def test_a_server_loads_the_plugin_and_duets_own():
    assert plugin_environment(OWN) == {"VLLM_PLUGINS": "duet"}
    environment = plugin_environment(RANDOM_KEEP)
    assert environment["VLLM_PLUGINS"] == "duet,duet_random_keep"
    assert str(PLUGIN_FOLDER) in environment["PYTHONPATH"].split(":")


def test_the_folder_names_entry_points_that_exist():
    (plugin,) = distributions(path=[str(PLUGIN_FOLDER)])
    found = {point.name: point.load() for point in plugin.entry_points}
    assert found == {RANDOM_KEEP: selection.use_random_keep, UNIFORM_POOLING: selection.use_uniform_pooling}
    assert {point.group for point in plugin.entry_points} == {"vllm.general_plugins"}


@pytest.fixture
def engine(monkeypatch):
    """The two places in the engine that are replaced, as they were."""
    monkeypatch.setattr(model, "cut", model.cut)
    monkeypatch.setattr(Llava, "score", lambda self, model, tap, inputs, units: (SCORE, None))


def cut_rows():
    return [values(unit.rows) for unit in model.cut(Encoded(ROWS, SCORE, ROWS), UNITS, has_cls=True, in_place=False)]


def test_random_keep_replaces_stage_1_and_logs_it_once(engine, capfd):
    selection.use_random_keep()
    pixels = torch.rand(2, 3, 4, 4)
    score, _ = Llava().score(None, None, {"pixel_values": pixels}, UNITS)
    assert torch.equal(score, random_scores(pixels, 4).flatten())
    assert cut_rows() == cut_rows() == [[1, 3], [10, 11, 12, 13]]
    assert capfd.readouterr().err.count(says_in_log(RANDOM_KEEP)) == 1


def test_pooling_replaces_stage_1(engine, capfd):
    selection.use_uniform_pooling()
    assert cut_rows() == [[1.0, 2.0], [10, 11, 12, 13]]
    assert capfd.readouterr().err.count(says_in_log(UNIFORM_POOLING)) == 1
