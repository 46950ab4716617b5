"""``duet-server run-batch``, a process that answers a file of requests and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.golden_cases import checkpoint_path, golden_cases
from tests.serving.running_server import SMALL, chat, picture_and_text, token_ids
from tests.serving.test_examples import EXAMPLES

MODEL = "llava_gqa"


def test_golden_tokens_from_a_file(tmp_path):
    cases = golden_cases(MODEL)
    bodies = [
        chat(picture_and_text(case.picture_path, case.question), compression=case.compression, model="golden")
        for case in cases
    ]
    bodies.insert(1, bodies[0] | {"compression": {"reduction": 2}})
    lines = [
        {"custom_id": str(idx), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for idx, body in enumerate(bodies)
    ]
    examples = [json.loads(line) for line in (EXAMPLES / "batch.jsonl").read_text().splitlines()]
    for line in examples:
        line["body"]["model"] = "golden"
    (tmp_path / "in").write_text("\n".join(map(json.dumps, [*examples, *lines])))
    files = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
    words = ["run-batch", str(checkpoint_path(MODEL)), *files, "--served-model-name", "golden", *SMALL]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    subprocess.run([sys.executable, "-m", "duet_server.cli", *words], check=True, timeout=600, env=environment)
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    for line, answer in zip(examples, answers, strict=False):
        assert answer["custom_id"] == line["custom_id"]
        assert answer["response"]["body"]["usage"]["compression"]["reduction"] > 0.5
    del answers[: len(examples)]
    refused = answers.pop(1)
    assert refused["error"]["error"]["param"] == "compression.reduction"
    assert [token_ids(answer["response"]["body"]) for answer in answers] == [case.tokens for case in cases]
