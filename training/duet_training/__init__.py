"""DUET's two stages on a Hugging Face LLaVA, differentiable: the reference that the engine is tested against."""
