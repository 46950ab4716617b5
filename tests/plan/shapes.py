"""The models in the tests of the plan."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from duet_server.plan import DecoderShape, ModelShape, VisionShape

LLAVA_7B = ModelShape(
    decoder=DecoderShape(
        num_layers=32,
        hidden_size=4096,
        intermediate_size=11008,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=32064,
    ),
    vision=VisionShape(
        num_patches=576,
        has_cls=True,
        num_layers=23,
        hidden_size=1024,
        intermediate_size=4096,
        patch_size=14,
        image_size=336,
    ),
    boundaries=(16, 24),
)


def llava(boundaries=(16, 24), num_layers=32, num_patches=576, has_cls=True):
    """LLaVA-1.5-7B, optionally with another depth, other boundaries or another vision tower."""
    decoder = replace(LLAVA_7B.decoder, num_layers=num_layers)
    vision = replace(LLAVA_7B.vision, num_patches=num_patches, has_cls=has_cls)
    return ModelShape(decoder, vision, tuple(boundaries))


@st.composite
def shapes(draw, has_cls=True, max_layers=40):
    """Any depth, any boundaries, any image."""
    num_layers = draw(st.integers(1, max_layers))
    boundaries = draw(st.sets(st.integers(1, num_layers - 1), max_size=4)) if num_layers > 1 else ()
    return llava(sorted(boundaries), num_layers, draw(st.integers(1, 1200)), has_cls)


@st.composite
def schedules(draw, num_boundaries):
    """Keeps that never rise."""
    shares = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
    return tuple(sorted(draw(st.lists(shares, min_size=num_boundaries, max_size=num_boundaries)), reverse=True))
