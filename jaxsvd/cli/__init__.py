"""The command line: `python -m jaxsvd demo` and `python -m jaxsvd info`.

Exit codes: 0 done, 1 a result failed its own check, 2 the command was not understood or cannot run
here; then one sentence on stderr says why.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import demo, info

_DESCRIPTION = "The singular value decomposition in JAX, with derivatives that are right everywhere"

_EPILOG = """examples:
  python -m jaxsvd demo                       see it work, in half a minute, on real data
  python -m jaxsvd demo --output out.png      ... and put the picture elsewhere
  python -m jaxsvd info                       versions, devices, and what runs for typical shapes
  python -m jaxsvd info 1000 50               ... for a matrix of 1000 rows and 50 columns
  python -m jaxsvd info 3 3 --batch 100000    ... for a hundred thousand 3 x 3 matrices
"""

_DEMO = """Three things in one run, on data that comes with scikit-learn:

  1. learn a weight for each of the 64 pixels of handwritten digits, by gradients through singular
     vectors, so that the leading singular subspace separates the digits; judged on held-out digits
  2. compress a photograph at several ranks: the error that Eckart and Young promise beside the
     error measured
  3. one gradient at a repeated singular value, where that of jnp.linalg.svd is NaN

It prints a table, writes one PNG, and checks its own numbers: exit code 1 if one is wrong.
Needs matplotlib, scikit-learn and tqdm: pip install -e ".[demo]"
"""

_INFO = """Versions, devices, number formats, and which algorithm serves which shape.

Without M and N a list of typical shapes is shown.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence; argparse would print its usage before them."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("argument command: invalid choice:", "unknown command")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("jaxsvd", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    parser.prog = "python -m jaxsvd"
    commands = parser.add_subparsers(dest="command", metavar="command", parser_class=_Parser)

    command = commands.add_parser(
        "demo", help="see it work on real data", description=_DEMO, formatter_class=raw
    )
    command.add_argument(
        "--output", type=Path, default=Path("jaxsvd-demo.png"), metavar="FILE.png",
        help="the picture to write (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--steps", type=int, default=demo.STEPS, metavar="N",
        help="optimisation steps for the pixel weights (default: %(default)s)",
    )  # fmt: skip

    command = commands.add_parser(
        "info", help="versions, devices, algorithms", description=_INFO, formatter_class=raw
    )
    command.add_argument("shape", type=int, nargs="*", metavar="M N", help="rows and columns")
    command.add_argument("--batch", type=int, metavar="B", help="number of matrices in a stack")
    command.add_argument(
        "--dtype", default="float32", metavar="NAME", help="dtype of the matrix (%(default)s)"
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a command that is not understood exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "demo":
            return demo.run(arguments.output, arguments.steps, info.headline())
        if arguments.command == "info":
            return info.run(arguments.shape, arguments.batch, arguments.dtype, arguments.json)
    except (demo.Refused, info.Refused, ImportError) as refused:
        print(f"{parser.prog} {arguments.command}: {refused}", file=sys.stderr)
        return 2
    parser.print_help()
    return 0
