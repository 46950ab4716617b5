"""Schemathesis's hooks: they keep requests on this machine, make half of them nearly valid, and record answers.

A generated body has up to sixty fields and fails validation at one of them. To reach the engine as well, half of the
bodies become valid requests with a few of the generated fields. Schemathesis finds this module by
``SCHEMATHESIS_HOOKS``.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import schemathesis

from benchmarks.pictures import data_url, picture

RECORD = "DUET_FUZZ_RECORD"  # names the file that gets one line of JSON per answer
MODEL_NAME = "DUET_FUZZ_MODEL"  # names the served model, which some routes require
NOT_LOOPBACK = re.compile(r"(?i)^\s*(https?|wss?|ftp)://")
LOOPBACK = "http://127.0.0.1:9/"  # nothing listens on this port
MAX_FIELDS = 3

QUESTION = [
    {"type": "image_url", "image_url": {"url": data_url(picture())}},
    {"type": "text", "text": "What color is it?"},
]
MESSAGES = [{"role": "user", "content": QUESTION}]
TEXT = [{"role": "user", "content": "What color is it?"}]
VALID: dict[str, dict[str, Any]] = {
    "/tokenize": {"messages": MESSAGES},
    "/detokenize": {"tokens": [40, 50]},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/chat/completions/batch": {"messages": [TEXT, TEXT], "max_tokens": 4},
    "/v1/completions": {"prompt": "What color is it?", "max_tokens": 4},
    "/v1/compression/plan": {"messages": MESSAGES},
    "/v1/compression/preview": {"messages": MESSAGES},
    "/v1/responses": {"input": "What color is it?", "max_output_tokens": 4},
    "/v1/messages": {"model": os.environ.get(MODEL_NAME), "messages": TEXT, "max_tokens": 4},
    "/v1/messages/count_tokens": {"model": os.environ.get(MODEL_NAME), "messages": TEXT},
    "/generative_scoring": {"query": "Is it ", "items": ["red", "blue"], "label_token_ids": [40, 50]},
}


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    valid = VALID.get(case.path)
    if valid is not None and isinstance(case.body, dict):
        case.body = few_fields(case.body, valid)
    if isinstance(case.body, dict | list):
        case.body = on_loopback(case.body)


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: schemathesis.Case, response: schemathesis.Response) -> None:
    record(case, response.request, response.status_code, response.text)


@schemathesis.hook
def after_network_error(context: schemathesis.HookContext, case: schemathesis.Case, request: Any) -> None:
    record(case, request, 0, "no answer")


def few_fields(body: dict[str, Any], valid: dict[str, Any]) -> dict[str, Any]:
    """``body`` itself, or ``valid`` with a few fields of ``body``. The body seeds the choice, so that runs repeat."""
    rng = random.Random(json.dumps(body, sort_keys=True, default=str))
    if rng.random() < 0.5:
        return body
    names = sorted(body, key=str)
    return {**valid, **{name: body[name] for name in rng.sample(names, min(MAX_FIELDS, len(names)))}}


def on_loopback(value: Any) -> Any:
    """The same value, with all URLs replaced by one on the loopback address."""
    if isinstance(value, str):
        return LOOPBACK if NOT_LOOPBACK.match(value) else value
    if isinstance(value, list):
        return [on_loopback(item) for item in value]
    return {key: on_loopback(item) for key, item in value.items()} if isinstance(value, dict) else value


def record(case: schemathesis.Case, request: Any, status: int, answer: str) -> None:
    """Record an answer. For a fault, also record its text and the request's body."""
    line: dict[str, Any] = {"operation": f"{case.operation.method.upper()} {case.path}", "status": status}
    if status == 0 or status >= 500:
        body = request.body or b""
        line |= {
            "answer": answer[:500],
            "request": body.decode(errors="replace") if isinstance(body, bytes) else str(body),
        }
    with Path(os.environ[RECORD]).open("a") as file:
        file.write(json.dumps(line) + "\n")
