"""Fine-tunes LLaVA with both DUET stages in the forward pass, using the same operations as the serving engine."""
