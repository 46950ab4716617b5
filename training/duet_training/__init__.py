"""Fine-tunes LLaVA with both of DUET's stages in the forward pass, on the operations that the engine serves with."""
