"""`python -m jaxsvd compress`: a checkpoint brought to a budget of parameters."""

from pathlib import Path
from typing import NamedTuple

import jax

from .. import _files
from ..compress import budget, storage
from .checkpoint import Refused, axes_of, needs_x64, progress, read, sentences, size, where_of


class Request(NamedTuple):
    """What the command line asks for; the fields are its options."""

    path: Path
    output: Path
    budget: str
    metrics: Path | None = None
    where: str | None = None
    axes: str | None = None
    allocation: str = "global"
    relative: bool = False
    dry_run: bool = False
    force: bool = False


def _budget(text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise Refused(f"--budget must be a share such as 0.6 or a number of parameters, got {text!r}")


def _check_output(request: Request) -> None:
    """Raise before any work is done if the output could not be written, or must not be."""
    path, output = request.path, request.output
    _files.suffix_of(output)
    if not output.parent.is_dir():
        raise Refused(f"{output}: wanted a file in a folder that exists")
    if output.exists():
        if path.exists() and output.samefile(path):
            raise Refused(f"{output}: is the input; wanted another file as output")
        if output.is_dir():
            raise Refused(f"{output}: wanted a file, got a folder")
        if not (request.force or request.dry_run):
            raise Refused(f"{output}: exists already; --force replaces it")


def run(request: Request) -> int:
    """Write the compressed file and print the report; raise `Refused` with a sentence."""
    with sentences():
        _check_output(request)
        wanted, axes = _budget(request.budget), axes_of(request.axes)
        found = read(request.path)
        if storage.factored_leaves(request.path, found.metadata):
            raise Refused(f"{request.path}: is compressed already")
        arrays = found.arrays
        with jax.enable_x64(True if needs_x64(arrays) else bool(jax.config.jax_enable_x64)):  # pyright: ignore[reportAttributeAccessIssue]
            params = dict(arrays)
            metrics = None
            if request.metrics is not None:
                metrics = storage.metrics_from_arrays(read(request.metrics).arrays)
            with progress("decompositions") as move:
                small, report = budget.to_budget(
                    params, wanted, metrics, where_of(request.where, params, axes), axes,
                    allocation=request.allocation, relative=request.relative, progress=move,
                )  # fmt: skip
            factored = {leaf.name for leaf in report.leaves if leaf.rank is not None}
            # What stays an array is written as it came, bit by bit.
            small = {name: small[name] if name in factored else x for name, x in arrays.items()}
            print(report)
            if request.dry_run:
                print("dry run: nothing written")
                return 0
            storage.save(small, request.output, metadata=found.metadata, force=request.force)
    before, after = size(request.path), size(request.output)
    print(f"{request.output}: {after}, from {before}")
    return 0
