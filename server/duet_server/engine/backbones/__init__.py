"""One file for each family of vLLM's models that the engine compresses, and the table of them."""
