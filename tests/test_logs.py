from __future__ import annotations

import io
import json
import logging
import sys
from logging.config import dictConfig

import pytest

from duet_server.cli import serve_parser
from duet_server.logs import JsonFormatter, PrintedLines, RequestIdFilter, logging_config, request_id


def record(message="said %s", *args, exc_info=None):
    made = logging.LogRecord("vllm.x", logging.WARNING, "x.py", 1, message, args or ("this",), exc_info)
    RequestIdFilter().filter(made)
    return made


def test_a_record_is_one_object_in_one_line():
    line = JsonFormatter().format(record("first\nsecond\x1b[31m %s", "é"))
    assert "\n" not in line
    assert "\x1b" not in line
    content = json.loads(line)
    assert content["message"] == "first\nsecond\x1b[31m é"
    assert (content["level"], content["logger"]) == ("WARNING", "vllm.x")
    assert content["time"].endswith("+00:00")
    assert "request_id" not in content


def test_it_names_the_request_and_the_exception():
    marked = request_id.set("mine")
    try:
        raise KeyError("x")
    except KeyError:
        content = json.loads(JsonFormatter().format(record(exc_info=sys.exc_info())))
    finally:
        request_id.reset(marked)
    assert content["request_id"] == "mine"
    assert content["exception"].splitlines()[-1] == "KeyError: 'x'"


def test_printed_lines_are_logged_once_they_have_ended(caplog):
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    printed = PrintedLines(stream, logging.getLogger("printed"))
    print("one", end="", file=printed)
    assert caplog.messages == []
    print("\rtwo\n\nthree", file=printed)
    assert caplog.messages == ["one", "two", "three"]
    assert printed.getvalue() == ""  # all other attributes are the stream's own


@pytest.fixture
def unchanged_logging():
    """Restores this process's loggers after a configuration has changed them."""
    names = ("", "vllm", "uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    streams = sys.stdout, sys.stderr
    yield
    sys.stdout, sys.stderr = streams
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, kept, strict=True):
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


@pytest.mark.usefixtures("unchanged_logging")
@pytest.mark.parametrize("as_json", [False, True])
def test_the_configuration_is_data_and_covers_vllm_and_uvicorn(as_json, capfd):
    args = serve_parser().parse_args(["serve", "a/b", "--disable-access-log-for-endpoints", "/health"])
    dictConfig(json.loads(json.dumps(logging_config(args, as_json=as_json))))
    marked = request_id.set("mine")
    for path in ("/health", "/v1/models"):
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", path, "1.1", 200)
    request_id.reset(marked)
    if as_json:  # vLLM's own format needs fields that vLLM adds to records after it has configured itself
        logging.getLogger("vllm.any").info("started")
    for handler in logging.getLogger("uvicorn.access").handlers:
        handler.flush()
    shown = capfd.readouterr().out
    assert "/health" not in shown
    if as_json:
        access, started = map(json.loads, shown.splitlines())
        assert (access["request_id"], access["logger"]) == ("mine", "uvicorn.access")
        assert started["message"] == "started"
    else:
        assert '1.2.3.4:5 - "GET /v1/models HTTP/1.1" 200 OK mine' in shown
