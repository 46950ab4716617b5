"""Fine-tuning with both of DUET's stages in the loop, on Hugging Face models."""
