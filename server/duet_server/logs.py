"""One logging configuration for every process of a server, vLLM's loggers and uvicorn's: text, or lines of JSON."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import tempfile
from argparse import Namespace
from contextvars import ContextVar
from copy import deepcopy
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TextIO

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)  # set for as long as a request is answered
ACCESS_LINE = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s %(request_id)s'


def set_up_logging(args: Namespace) -> None:
    """Have vLLM log by our configuration, here and in its other processes, unless the user gave it one."""
    from vllm import envs
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging_from_args

    named = [getattr(args, name, None) for name in ("logging_config", "log_config_file")]
    if not any(named) and envs.VLLM_CONFIGURE_LOGGING and not envs.VLLM_LOGGING_CONFIG_PATH:
        path = _temporary_file(json.dumps(logging_config(args, as_json=args.duet_log_format == "json")))
        args.logging_config = LoggingConfig(pylogging_config_file=path)
    configure_logging_from_args(args)


def logging_config(args: Namespace, *, as_json: bool) -> dict[str, Any]:
    """What ``logging.config.dictConfig`` takes, of strings and numbers only: vLLM's and uvicorn's own, in one."""
    from vllm import envs
    from vllm.logger import DEFAULT_LOGGING_CONFIG
    from vllm.logging_utils import create_uvicorn_log_config
    from vllm.logging_utils.uvicorn_logging import UvicornAccessLogFilter

    unlogged = [path.strip() for path in (args.disable_access_log_for_endpoints or "").split(",")]
    config = create_uvicorn_log_config(unlogged, args.uvicorn_log_level)
    for section in ("formatters", "handlers", "loggers"):
        config[section] |= deepcopy(DEFAULT_LOGGING_CONFIG[section])
    level = getattr(args, "log_level", envs.VLLM_LOGGING_LEVEL)
    config["loggers"]["vllm"]["level"] = config["handlers"]["vllm"]["level"] = level
    access_filter = f"{UvicornAccessLogFilter.__module__}.{UvicornAccessLogFilter.__name__}"
    config["filters"]["access_log_filter"]["()"] = access_filter
    config["filters"]["request_id"] = {"()": f"{__name__}.RequestIdFilter"}
    config["formatters"]["access"]["fmt"] = ACCESS_LINE
    for handler in config["handlers"].values():
        handler["filters"] = [*handler.get("filters", []), "request_id"]
    return _in_json(config) if as_json else config


def _in_json(config: dict[str, Any]) -> dict[str, Any]:
    config["formatters"] = {"json": {"()": f"{__name__}.json_formatter"}}
    for handler in config["handlers"].values():
        handler["formatter"] = "json"
        handler["stream"] = handler["stream"].replace("sys.std", "sys.__std") + "__"  # see json_formatter
    return {**config, "root": {"handlers": ["vllm"], "level": "WARNING"}}


@cache
def _temporary_file(text: str) -> str:
    handle, path = tempfile.mkstemp(prefix="duet-logging-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    atexit.register(Path(path).unlink, missing_ok=True)
    return path


class RequestIdFilter(logging.Filter):
    """Lets every record through, with the id of the request that it was made for."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class JsonFormatter(logging.Formatter):
    """A record as one line: an object of its time, level, logger, process and message; its request and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": getattr(record, "vllm_process_name", record.processName),
            "pid": record.process,
            "message": record.getMessage(),
        }
        if getattr(record, "request_id", NO_REQUEST) != NO_REQUEST:
            line["request_id"] = record.request_id  # type: ignore[attr-defined]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def json_formatter() -> JsonFormatter:
    """The formatter; as it is made in each process that logs in JSON, what is printed there becomes records too."""
    logging.captureWarnings(True)
    if not isinstance(sys.stdout, PrintedLines):
        sys.stdout = PrintedLines(sys.stdout, logging.getLogger("vllm.stdout"))  # type: ignore[assignment]
        sys.stderr = PrintedLines(sys.stderr, logging.getLogger("vllm.stderr"))  # type: ignore[assignment]
    return JsonFormatter()


class PrintedLines:
    """Stands in for a stream and logs each line: progress bars, tracebacks, other libraries' words."""

    def __init__(self, stream: TextIO, logger: logging.Logger) -> None:
        self._stream, self._logger, self._unfinished = stream, logger, ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            self._logger.info("%s", line)
        return len(text)

    def flush(self) -> None:
        """A line is logged once it has ended."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
