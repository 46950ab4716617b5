"""Ask a running server the same question with each of its presets, and compare answers and costs.

make serve                                # in another terminal
.venv/bin/python examples/compare_settings.py docs/shapes.png "What color is the circle?"
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import httpx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="a PNG file")
    parser.add_argument("question")
    parser.add_argument("--base-url", default="http://localhost:8000")
    args = parser.parse_args()

    url = f"data:image/png;base64,{base64.b64encode(args.picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": args.question}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 64, "temperature": 0}
    with httpx.Client(base_url=args.base_url, timeout=600) as client:
        presets = client.get("/v1/compression").raise_for_status().json()["presets"]
        print(f"{'setting':12} {'tokens':>7} {'KV cache':>9} {'FLOPs':>6}  answer")
        for name in presets:
            print(row(name, client, {**body, "compression": name}))


def row(name: str, client: httpx.Client, body: dict[str, Any]) -> str:
    """One line of the table: costs relative to the uncompressed request, and the answer."""
    plan = client.post("/v1/compression/plan", json=body).raise_for_status().json()
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    tokens = plan["compression"]["visual_tokens"]["layer_average"]
    cache, flops = (plan[key]["compressed"] / plan[key]["uncompressed"] for key in ("kv_cache_bytes", "prefill_flops"))
    text = answer["choices"][0]["message"]["content"].strip()
    return f"{name:12} {tokens:7.1f} {cache:9.0%} {flops:6.0%}  {text}"


if __name__ == "__main__":
    main()
