"""Long checks that a server survives what clients do to it."""
