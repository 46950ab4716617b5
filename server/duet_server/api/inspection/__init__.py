"""The inspection routes: what this server offers, what a request would cost, which patches it keeps."""
