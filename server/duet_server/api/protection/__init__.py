"""What guards the server: where pictures may come from, how much a request may ask for, what errors may say."""
