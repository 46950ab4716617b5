"""Protects the server: sources of pictures, size of requests, API keys, content of error responses."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from starlette.types import ASGIApp
from vllm.config.multimodal import ImageDummyOptions

from duet_server.api.error_spelling import ErrorSpelling
from duet_server.api.options import ServerOptions
from duet_server.api.protection.api_keys import ApiKeys, api_keys
from duet_server.api.protection.body_limit import BodyLimit
from duet_server.api.protection.media import register_connector
from duet_server.api.protection.plain_errors import PlainErrors


def protect(app: ASGIApp, engine_client: Any, args: Namespace, options: ServerOptions) -> ASGIApp:
    """Returns the app inside the middlewares that the options enable.

    Args:
        app: vLLM's app with its own middleware, which stays inside ours.
        engine_client: vLLM's engine client; its model configuration is this process's own copy.
        args: the server's arguments.
        options: DUET's options, which set the limits.
    """
    register_connector(options)
    cap_images(engine_client.model_config, args, options.max_images)
    keys = api_keys(args)
    app = ErrorSpelling(app)
    if options.max_body is not None:
        app = BodyLimit(app, options.max_body)
    if keys and options.guard_all_routes:
        app = ApiKeys(app, keys)
    return PlainErrors(app) if options.plain_errors else app


def cap_images(model_config: Any, args: Namespace, max_images: int | None) -> None:
    """Lower vLLM's limit of 999 pictures, unless the user has set one.

    The engine's processes have their own copies of the configuration, so the memory that they reserve does not change.
    """
    mm_config = model_config.multimodal_config
    if mm_config is not None and max_images is not None and "image" not in (args.limit_mm_per_prompt or {}):
        mm_config.limit_per_prompt["image"] = ImageDummyOptions(count=max_images)
