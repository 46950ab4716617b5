"""``python -m benchmarks.serving.stock_server MODEL`` does the same as ``vllm serve MODEL``.

It is needed because some builds of vLLM install a ``vllm`` command that does not start.
"""

from __future__ import annotations

import sys


def main() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    args = parser.parse_args(["serve", *sys.argv[1:]])
    command.validate(args)
    command.cmd(args)


if __name__ == "__main__":
    main()
