"""The decoder's loop over its segments, with segments that only count."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from duet_server.engine import text_stage
from duet_server.engine.backbones.decoder import Decoder
from duet_server.engine.text_stage import SegmentedDecoder

NUM_ROWS, NUM_KEPT, HIDDEN_SIZE = 8, 3, 4


class Segment:
    """Adds one, and notes whether the outputs of the segment before are still in memory."""

    def __init__(self, outputs: list[weakref.ref]) -> None:
        self.layers, self.outputs, self.sees = [None], outputs, []

    def __call__(self, positions, hidden, residual):
        self.sees = [output() is not None for output in self.outputs]
        result = hidden + 1, torch.zeros_like(hidden)
        self.outputs[:] = map(weakref.ref, result)
        return result


class Clock(nullcontext):
    def observe(self) -> None:
        """Nothing to record."""


def test_a_boundary_frees_the_rows_that_it_drops(monkeypatch):
    """A prefill that drops must not need more memory than the profiling run, which never drops."""
    outputs: list[weakref.ref] = []
    decoder = object.__new__(SegmentedDecoder)
    decoder.segments, decoder.hidden_size, decoder.clock = (Segment(outputs), Segment(outputs)), HIDDEN_SIZE, Clock()
    decoder.family = Decoder()
    decoder.traces = SimpleNamespace(add_boundary=lambda *args: None)
    buffers = SimpleNamespace(positions=torch.zeros(2, NUM_ROWS))
    decoder.step = SimpleNamespace(boundaries=(SimpleNamespace(),), buffers=buffers)
    decoder._layout = SimpleNamespace
    monkeypatch.setattr(text_stage, "surviving_rows", lambda *args: (torch.arange(NUM_KEPT), None))
    result = decoder(torch.arange(NUM_ROWS), torch.zeros(NUM_ROWS, HIDDEN_SIZE))
    assert decoder.segments[1].sees == [False, False]
    assert result[:, 0].tolist() == [2.0] * NUM_KEPT + [0.0] * (NUM_ROWS - NUM_KEPT)
