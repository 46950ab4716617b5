"""One logging configuration for all processes of a server and for vLLM's and uvicorn's loggers: text or JSON lines."""

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
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)  # set while a request is answered
ACCESS_LINE = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s %(request_id)s'


def set_up_logging(args: Namespace) -> None:
    """Make vLLM use our logging configuration in all of its processes, unless the user gave one."""
    from vllm import envs
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging_from_args

    named = [getattr(args, name, None) for name in ("logging_config", "log_config_file")]
    if not any(named) and envs.VLLM_CONFIGURE_LOGGING and not envs.VLLM_LOGGING_CONFIG_PATH:
        path = _temporary_file(json.dumps(logging_config(args, as_json=args.duet_log_format == "json")))
        args.logging_config = LoggingConfig(pylogging_config_file=path)
    configure_logging_from_args(args)


def logging_config(args: Namespace, *, as_json: bool) -> dict[str, Any]:
    """vLLM's and uvicorn's configurations merged into one for ``logging.config.dictConfig``, writable as JSON."""
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
    """Adds the id of the current request to every record, and rejects none."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, process, message; request id and traceback if any."""

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
    """Make the formatter of a process that logs JSON; from then on, printed lines and warnings are logged too."""
    logging.captureWarnings(True)
    if not isinstance(sys.stdout, PrintedLines):
        sys.stdout = PrintedLines(sys.stdout, logging.getLogger("vllm.stdout"))  # type: ignore[assignment]
        sys.stderr = PrintedLines(sys.stderr, logging.getLogger("vllm.stderr"))  # type: ignore[assignment]
    return JsonFormatter()


class PrintedLines:
    """Replaces a stream and logs each line: progress bars, tracebacks, output of other libraries."""

    def __init__(self, stream: TextIO, logger: logging.Logger) -> None:
        self._stream, self._logger, self._unfinished = stream, logger, ""

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            self._logger.info("%s", line)
        return len(text)

    def flush(self) -> None:
        """Does nothing: a line is logged when its end is written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
