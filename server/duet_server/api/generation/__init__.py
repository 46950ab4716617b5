"""The routes that generate: vLLM's handlers with the ``compression`` field in and ``usage.compression`` out."""
