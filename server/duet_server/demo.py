"""The demo model, which ships with the package: what is served where no model is named.

``python -m duet_training.demo`` builds it again from its seed.
"""

from __future__ import annotations

from pathlib import Path

DEMO_NAME = "duet-demo"
DEMO_NOTICE = "This is the demo model: it knows colored shapes, letters and digits on drawn pictures, and nothing else."
DEMO_MARK = "duet_demo"  # in config.json: by it a server knows, in every process, what it serves
DEMO_CHECKPOINT = Path(__file__).parent / "demo_model"
