"""The demo model: pictures drawn by fixed rules, questions about them, and the training on both."""
