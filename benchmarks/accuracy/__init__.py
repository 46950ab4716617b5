"""How right answers stay under compression: curves of accuracy over visual tokens and over requests/s."""
