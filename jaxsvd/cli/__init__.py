"""The command line: `python -m jaxsvd demo | info | report | compress`.

Exit codes: 0 done, 1 a result failed its own check, 2 the command was not understood or cannot run
here; then one sentence on stderr says why.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import checkpoint, compress, demo, info, report

_DESCRIPTION = "The singular value decomposition in JAX, with derivatives that are right everywhere"

_EPILOG = """examples:
  python -m jaxsvd demo                       see it work, in half a minute, on real data
  python -m jaxsvd demo --output out.png      ... and put the picture elsewhere
  python -m jaxsvd info                       versions, devices, and what runs for typical shapes
  python -m jaxsvd info 1000 50               ... for a matrix of 1000 rows and 50 columns
  python -m jaxsvd info 3 3 --batch 100000    ... for a hundred thousand 3 x 3 matrices
  python -m jaxsvd report model.safetensors   the spectra of a checkpoint: what can be compressed?
  python -m jaxsvd compress model.safetensors -o small.safetensors --budget 0.6
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

_REPORT = """The singular values of every matrix of a checkpoint, .safetensors or .npz.

  sigma_1     the largest        stable     |W|_F^2 / sigma_1^2
  effective   exp of the entropy of sigma_i / sum of all
  90 %, 99 %  the rank that holds that share of sum sigma_i^2
  99 % in     what the factors of that rank hold by what the matrix does; dense where that is more

A file that `compress` wrote is shown as the matrices that its factors stand for.
"""

_COMPRESS = """Replace the matrices of a checkpoint by factors, within a budget of parameters.

Each matrix is decomposed once; the ranks are those that lose least over all of them. One that would
not get smaller stays as it is. The output holds for each factored leaf

  NAME.U (m, r)   NAME.s (r,)   NAME.Vh (r, n)        weight = U diag(s) Vh

and says so in its metadata; jaxsvd.compress.load restores it, jaxsvd.compress.densify gives arrays.
The input is never changed, and the output appears whole or not at all. --metrics makes the error
that of the outputs on real inputs: a file that jaxsvd.compress.save_metrics wrote of what
collect_gram gathered, or any with a Gram matrix or its diagonal for each leaf, named NAME.rows or
NAME.columns after the side of the weight that is its inputs.
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
    _add_report(commands)
    _add_compress(commands)
    return parser


def _add_selection(command: argparse.ArgumentParser) -> None:
    """Add what both commands of checkpoints know: which leaves, and how they are matrices."""
    command.add_argument("path", type=Path, metavar="MODEL", help="a .safetensors or .npz file")
    command.add_argument(
        "--where", metavar="REGEX",
        help="only leaves whose name this regular expression is found in (default: all matrices)",
    )  # fmt: skip
    command.add_argument(
        "--axes", metavar="ROWS:COLUMNS",
        help="axes of leaves with more than two: 0,1,2:3 for a kernel HWIO, =-2:-1 for a stack",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="replace a file that exists")


def _add_report(commands: "argparse._SubParsersAction[_Parser]") -> None:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "report", help="the spectra of a checkpoint", description=_REPORT, formatter_class=raw
    )
    _add_selection(command)
    command.add_argument("--top", type=int, metavar="N", help="only the N largest matrices")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.add_argument(
        "--html", type=Path, metavar="FILE.html", help="write a page with plots as well"
    )


def _add_compress(commands: "argparse._SubParsersAction[_Parser]") -> None:
    raw = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        "compress", help="a checkpoint within a budget", description=_COMPRESS, formatter_class=raw
    )
    _add_selection(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    command.add_argument(
        "--budget", required=True, metavar="B",
        help="share of all parameters to keep, such as 0.6, or how many, such as 5000000",
    )  # fmt: skip
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="statistics of inputs, .npz or .safetensors",
    )
    command.add_argument(
        "--allocation", choices=("global", "uniform"), default="global",
        help="ranks that lose least over all matrices, or the same share of each (%(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--relative", action="store_true", help="weigh all matrices alike, whatever their norms"
    )
    command.add_argument("--dry-run", action="store_true", help="print the report, write nothing")


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(arguments).items() if name != "command"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a command that is not understood exits with 2."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "demo":
            return demo.run(arguments.output, arguments.steps, info.headline())
        if arguments.command == "info":
            return info.run(arguments.shape, arguments.batch, arguments.dtype, arguments.json)
        if arguments.command == "report":
            return report.run(**_options(arguments))
        if arguments.command == "compress":
            return compress.run(compress.Request(**_options(arguments)))
    except (demo.Refused, info.Refused, checkpoint.Refused, ImportError) as refused:
        print(f"{parser.prog} {arguments.command}: {refused}", file=sys.stderr)
        return 2
    parser.print_help()
    return 0
