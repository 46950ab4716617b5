"""DUET's visual-token compression served over the OpenAI API on vLLM."""

from importlib.metadata import version

__version__ = version("duet-server")  # pyproject.toml says which
