"""What the benchmarks need to know of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from duet_server.plan import ModelShape


class BenchmarkModel(Protocol):
    """A model of these sizes; vLLM makes up its weights."""

    @property
    def dtype(self) -> str: ...

    @property
    def picture_size(self) -> int:
        """Side of the square pictures that it is asked about, in pixels."""

    @property
    def image_token(self) -> int:
        """The token that stands for a picture in a prompt that is not processed yet."""

    @property
    def shape(self) -> ModelShape:
        """The shape for such pictures."""

    def write_checkpoint(self, directory: Path) -> Path:
        """Write everything except weights into a directory. Returns its absolute path, a key of the compile cache."""
