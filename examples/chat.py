"""Ask a running server about a picture with OpenAI's client, and print the number of visual tokens.

make serve                                # in another terminal
.venv/bin/python examples/chat.py docs/shapes.png "What color is the circle?"
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
from pathlib import Path

from openai import OpenAI


def data_url(picture: Path) -> str:
    media_type = mimetypes.guess_type(picture)[0] or "image/png"
    return f"data:{media_type};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--compression", default="balanced", help="a preset's name (default: %(default)s)")
    parser.add_argument("--base-url", default="http://localhost:8000/v1")
    args = parser.parse_args()

    client = OpenAI(base_url=args.base_url, api_key="none")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(args.picture)}},
        {"type": "text", "text": args.question},
    ]
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        max_tokens=64,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"compression": args.compression},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            tokens = chunk.usage.model_extra["compression"]["visual_tokens"]
            print(f"\n{tokens['layer_average']:g} of {tokens['encoder']} visual tokens, averaged over layers")


if __name__ == "__main__":
    main()
