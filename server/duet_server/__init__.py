"""DUET's visual-token compression served over the OpenAI API on vLLM."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("duet-server")  # pyproject.toml says which
except PackageNotFoundError:
    __version__ = "0+not.installed"  # a checkout on the path
