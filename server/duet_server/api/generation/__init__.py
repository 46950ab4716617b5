"""The routes that generate text: vLLM's handlers plus the ``compression`` field and ``usage.compression``."""
