"""The server from its start to its end: health routes, request gate, engine health, request ids, shutdown."""
