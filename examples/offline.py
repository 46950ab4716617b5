"""Answer questions about pictures without a server: vLLM's ``LLM`` and one call.

.venv/bin/python examples/offline.py
.venv/bin/python examples/offline.py --model llava-hf/llava-1.5-7b-hf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from vllm import LLM, SamplingParams

from duet_server.demo import DEMO_CHECKPOINT
from duet_server.offline import chat

PICTURE = Path(__file__).parents[1] / "docs" / "shapes.png"
QUESTIONS = ("What color is the circle?", "What color is the diamond?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO_CHECKPOINT), help="a LLaVA-1.5 model (default: the demo model)")
    args = parser.parse_args()

    llm = LLM(args.model, enforce_eager=True, max_model_len=1024, kv_cache_memory_bytes=1 << 30)
    picture = {"type": "image_pil", "image_pil": Image.open(PICTURE)}
    conversations = [
        [{"role": "user", "content": [picture, {"type": "text", "text": question}]}] for question in QUESTIONS
    ]
    sampling_params = SamplingParams(temperature=0, max_tokens=32)
    for compression in ("off", "balanced", {"visual_tokens": 32, "guide": "last"}):
        answers = chat(llm, conversations, compression, sampling_params, use_tqdm=False)
        print(compression, [answer.outputs[0].text.strip() for answer in answers])


if __name__ == "__main__":
    main()
