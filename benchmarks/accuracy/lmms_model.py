"""lmms-eval's OpenAI client, with ``compression`` in each request and the prompts and pictures of LLaVA's evaluation.

lmms-eval 0.7.3 has no option for extra fields in a request's body, and counts a failed request as a wrong answer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lmms_eval.api.instance import GenerationResult
from lmms_eval.models.chat.openai import OpenAICompatible

from benchmarks.accuracy.llava_prompt import as_llava_asks

FAILED = "[LMMS_EVAL_REQUEST_FAILED"


class CompressedOpenAI(OpenAICompatible):
    """Sends ``compression`` with every request, counts failed requests, and collects every ``usage.compression``."""

    def __init__(self, compression: str | dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.compression = compression
        self.num_failed = 0
        self.usages: list[dict[str, Any]] = []
        self._openai = self.client
        self.client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self._create)))

    def generate_until(self, requests: Any) -> list[GenerationResult]:
        results = super().generate_until(requests)
        self.num_failed += sum(result.text.startswith(FAILED) for result in results)
        return results

    def _create(self, **payload: Any) -> Any:
        payload["messages"] = as_llava_asks(payload["messages"])
        payload["extra_body"] = {**payload.get("extra_body", {}), "compression": self.compression}
        payload.setdefault("temperature", 0)  # lmms-eval omits it for model names that look like OpenAI's o1 or o3
        response = self._openai.chat.completions.create(**payload)
        self.usages.append(response.usage.model_extra["compression"])
        return response
