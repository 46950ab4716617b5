"""HTTP around every route: the parser of requests, what their heads may say, and HEAD."""
