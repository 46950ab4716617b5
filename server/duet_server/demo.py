"""The demo model. It ships with the package, and is served if no model is named.

``python -m duet_training.demo`` rebuilds it from its seed.
"""

from __future__ import annotations

from pathlib import Path

DEMO_NAME = "duet-demo"
DEMO_NOTICE = (
    "This is the demo model: it knows colored shapes, letters and digits on one drawn picture a chat, and nothing else."
)
DEMO_MARK = "duet_demo"  # in config.json; every process of a server recognizes the demo model by it
DEMO_CHECKPOINT = Path(__file__).parent / "demo_model"
