"""Accuracy under compression: curves over visual tokens and over requests/s."""
