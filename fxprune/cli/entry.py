"""The parser and the entry point.

Results go to stdout, as tables or, with ``--json``, as one line of JSON; everything else goes to
stderr. Exit status: 0, or 2 for what the user can put right (with a message, without a traceback),
or 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import get_args

from fxprune import __version__
from fxprune.analysis.policy import Attention
from fxprune.cli import commands
from fxprune.cli.commands import Answer
from fxprune.cli.train import add_train_options, train
from fxprune.errors import FxpruneError
from fxprune.importance import IMPORTANCES

__all__ = ["main"]

_MODEL = "a torchvision name, timm:NAME, or package.module:factory"
_USER_ERROR = 2
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        Exit status.

    Raises
    ------
    SystemExit
        From argparse, for ``--help``, ``--version`` and arguments it cannot parse.
    FxpruneError
        With ``--debug`` only, instead of exit status 2.
    """
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], Answer | None] = args.run
    try:
        with warnings.catch_warnings():
            if not args.debug:
                warnings.simplefilter("ignore")
            answer = run(args)
        if answer is not None:  # one of several processes speaks for all
            print(json.dumps(answer.data) if args.json else answer.text, flush=True)
    except FxpruneError as error:
        if args.debug:
            raise
        for line in (str(error), *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        return _USER_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # as in `fxprune inspect resnet18 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one line of JSON")
    common.add_argument("--debug", action="store_true", help="show warnings and tracebacks")
    parser = argparse.ArgumentParser(
        prog="fxprune", description="Structured pruning for any PyTorch model."
    )
    parser.add_argument("--version", action="version", version=f"fxprune {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], Answer | None]
    ) -> argparse.ArgumentParser:
        made = subparsers.add_parser(
            name, help=run.__doc__, description=run.__doc__, parents=[common]
        )
        made.set_defaults(run=run)
        return made

    _demo(command("demo", commands.demo))
    _inspect(command("inspect", commands.inspect))
    _prune(command("prune", commands.prune))
    _train(command("train", train))
    _compare(command("compare", commands.compare))
    return parser


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", metavar="DIR", help="where to write (demo)")
    parser.add_argument("--quick", action="store_true", help="one epoch on 256 images")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data (12)")
    parser.add_argument("--macs", type=float, default=0.5, help="share of MACs to keep (0.5)")
    parser.add_argument("--seed", type=int, default=0, help="for weights and data (0)")


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument(
        "--svg", metavar="FILE", help="draw the dependency graph too: .svg, .png or .pdf"
    )
    _add_model_options(parser)


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=float, help="share of the model's MACs to keep, 0 to 1")
    budget.add_argument("--params", type=float, help="share of its parameters to keep, 0 to 1")
    parser.add_argument(
        "--importance",
        default="magnitude",
        metavar="NAME",
        help=f"{', '.join(IMPORTANCES)} (magnitude)",
    )
    parser.add_argument(
        "--round-to", type=int, default=1, metavar="N", help="keep widths multiples of N (1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for random importance (0)")
    parser.add_argument("--out", metavar="PATH", help="where to write, .pt or .onnx")
    _add_latency_option(parser)
    _add_model_options(parser)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    add_train_options(parser)
    _add_ignore_and_weights(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="an ONNX file, or a model as for inspect")
    parser.add_argument("second", metavar="B", help="the same")
    _add_latency_option(parser)
    _add_input_option(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    _add_input_option(parser)
    _add_ignore_and_weights(parser)


def _add_ignore_and_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="module or parameter that keeps its width, or re:PATTERN; may be repeated",
    )
    parser.add_argument(
        "--attention",
        choices=get_args(Attention),
        default="both",
        help="what of attention to prune: whole heads, positions inside heads (both)",
    )
    parser.add_argument(
        "--branches",
        action="store_true",
        help="prune branches too: whole operands of residual adds",
    )
    parser.add_argument("--weights", help="file with a state_dict, or a name the library knows")


def _add_input_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="1,3,224,224 or 1,16:int64; once per input (guessed)",
    )


def _add_latency_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-latency", dest="latency", action="store_false", help="measure no run times"
    )
