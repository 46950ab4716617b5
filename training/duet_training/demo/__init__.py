"""The demo model's world: pictures drawn by rule, questions about them, and how the model is trained on both."""
