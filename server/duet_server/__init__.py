"""DUET's visual-token compression served over the OpenAI API on vLLM."""

__version__ = "0.1.0"
