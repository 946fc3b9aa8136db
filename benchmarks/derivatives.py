"""Derivatives of gauge-free losses, kind of matrix by kind of matrix: who has them right.

    python -m benchmarks.derivatives [--half svd | hermitian] [--json FOLDER] [--markdown]
                                     [--update README.md]

A cell is a matrix (`problems`), a loss that has a derivative there (`losses`) and a way to take it:
jvp, vjp, Hessian-vector product in the three orders of differentiation. It passes if it is close to
the exact value (`oracle`, `cells`). A cell whose exact value is not a normal number of the dtype is
not counted, and listed. The same losses are written over jnp.linalg.svd and, where it is installed,
torch.linalg.svd (`libraries`). The other half is that of Hermitian matrices (`eigenproblems`,
`eigenoracle`, `eigenlibraries`), against jnp.linalg.eigh and torch.linalg.eigh. Exit code 1 if a
cell of jaxsvd fails. A few minutes, most of it compiling.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from .cells import HERMITIAN, SVD, Cell, Half, cells
from .libraries import LIBRARIES, MODES

MARKERS = ("<!-- derivatives:begin -->", "<!-- derivatives:end -->")
HERMITIAN_MARKERS = ("<!-- hermitian:begin -->", "<!-- hermitian:end -->")

# Name: the half, where it stands in the README, its file of results.
HALVES = {
    "svd": (SVD, MARKERS, "derivatives.json"),
    "hermitian": (HERMITIAN, HERMITIAN_MARKERS, "derivatives_hermitian.json"),
}

NOTHING = 1e-17  # an error below is the rounding of the oracle


def entry(cells: Iterable[Cell]) -> str:
    """Return "passed/counted" and what is wrong with the rest."""
    counted = [cell for cell in cells if cell.representable]
    errors = [cell.error for cell in counted if cell.error is not None]
    finite = [error for error in errors if not np.isnan(error)]
    parts = [f"{sum(cell.passed for cell in counted)}/{len(counted)}"]
    if any(np.isnan(errors)):
        parts.append(f"{int(np.sum(np.isnan(errors)))} NaN")
    if len(errors) < len(counted):
        parts.append(f"{len(counted) - len(errors)} raise")
    if finite:
        worst = max(finite)
        parts.append(f"{worst:.0e}" if worst > NOTHING else "0")
    return ", ".join(parts)


def installed() -> list[str]:
    """Return the libraries that can be asked."""
    has_torch = importlib.util.find_spec("torch") is not None
    return [name for name in LIBRARIES if name != "torch.linalg" or has_torch]


def rows(found: list[Cell]) -> list[list[str]]:
    """Return the table: a header, one row for each kind of matrix, the totals."""
    columns = [(order, library) for order in MODES for library in LIBRARIES]
    words = {1: "first", 2: "second"}
    table = [["matrix", *(f"{library}, {words[order]}" for order, library in columns)]]
    names = list(dict.fromkeys(cell.problem for cell in found))
    for name in [*names, "all"]:
        row = [name]
        for order, library in columns:
            mine = [c for c in found if (c.order, c.library) == (order, library)]
            mine = [c for c in mine if name in (c.problem, "all")]
            row.append(entry(mine) if mine else "not installed")
        table.append(row)
    return table


def plain(table: list[list[str]]) -> str:
    """Return the table with its columns aligned."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in table
    )


def markdown(table: list[list[str]], versions: dict[str, str]) -> str:
    """Return the table for the README, with a line on how to read it."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    lines.insert(1, "|---" * len(table[0]) + "|")
    used = ", ".join(f"{k} {versions[k]}" for k in ("jax", "torch") if k in versions)
    return "\n".join(
        [
            "Passed of defined cells (a loss, and a way to differentiate it), NaNs, and the worst "
            f"finite relative error; `python -m benchmarks.derivatives` writes it ({used}).",
            "",
            *lines,
        ]
    )


def not_representable(found: list[Cell]) -> list[str]:
    """Return the cells whose exact value is no normal number of the dtype, as text."""
    return [
        f"{cell.problem}: {cell.loss}, {cell.mode}"
        for cell in found
        if cell.library == "jaxsvd" and not cell.representable
    ]


def versions() -> dict[str, str]:
    """Return the versions of all that takes part."""
    names = ["jaxsvd", "jax", "jaxlib", "numpy", "mpmath", "torch"]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "jaxsvd":  # run from a checkout
                import jaxsvd

                found[name] = jaxsvd.__version__
    return found


def as_json(found: list[Cell], half: Half = SVD) -> str:
    """Return all cells: one line for each matrix, loss and order, with the modes on it."""
    lines: dict[tuple, dict[str, list]] = {}
    for cell in found:
        modes = lines.setdefault((cell.problem, cell.loss, cell.order), {})
        modes.setdefault(cell.mode, []).append(cell.outcome)
    through = {loss.name: loss.through for loss in half.losses}
    body = ",\n  ".join(
        json.dumps({"matrix": p, "loss": l, "through": through[l], "order": o, **modes})
        for (p, l, o), modes in lines.items()
    )
    head = {
        "versions": versions(),
        "bars": half.bars,
        "libraries": list(dict.fromkeys(cell.library for cell in found)),
        "not representable": not_representable(found),
    }
    return json.dumps(head, indent=1).removesuffix("\n}") + f',\n "cells": [\n  {body}\n ]\n}}\n'


def update(path: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the two markers of a file."""
    begin, end = markers
    old = path.read_text()
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{path} must hold {begin} and {end} once each")
    before, rest = old.split(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def run(half: Half) -> list[Cell]:
    """Return all cells of one half."""
    found: list[Cell] = []
    for problem in half.problems:
        print(problem.name, file=sys.stderr, flush=True)
        for order in MODES:
            for library in installed():
                found += cells(library, problem, order, half)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.derivatives")
    parser.add_argument("--half", choices=HALVES, help="only this one")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="write all cells there")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument(
        "--update", type=Path, metavar="FILE", help=f"put the tables between {' '.join(MARKERS)}"
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")

    failed = []
    for name in [arguments.half] if arguments.half else HALVES:
        half, markers, file = HALVES[name]
        found = run(half)
        table = rows(found)
        print(markdown(table, versions()) if arguments.markdown else plain(table))
        if arguments.json:
            (arguments.json / file).write_text(as_json(found, half))
        if arguments.update:
            update(arguments.update, markdown(table, versions()), markers)
        print("\nnot representable, not counted:", *not_representable(found), sep="\n  ")
        failed += [c for c in found if c.library == "jaxsvd" and c.representable and not c.passed]
    for cell in failed:
        print(f"FAILED: {cell.problem}: {cell.loss}, {cell.mode}: {cell.outcome}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
