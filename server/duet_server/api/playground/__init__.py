"""The playground: a page at ``/`` to try the server in a browser."""
