"""`python -m jaxsvd report`: the spectra of a checkpoint as a table, as JSON, as a page."""

import math
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks, _files, _leaves, regularizers
from ..compress import storage
from ..compress.stored import dense
from ..primitives.svd import svdvals
from . import page
from .checkpoint import Refused, axes_of, needs_x64, progress, read, sentences, size, where_of

HEADER = ("leaf", "shape", "dtype", "sigma_1", "stable", "effective", "90 %", "99 %", "99 % in")


class Line(NamedTuple):
    """One matrix of a checkpoint.

    Attributes:
        dtype: of the leaf, "rank r" added for one that is stored as factors.
        figures: of its spectrum.
        values: the singular values, NaN for a leaf that is not finite.
    """

    dtype: str
    figures: regularizers.Row
    values: np.ndarray

    @property
    def is_finite(self) -> bool:
        """Whether the leaf holds neither NaN nor Inf."""
        return bool(np.isfinite(self.values).all())

    @property
    def share(self) -> float:
        """The numbers that factors with 99 % of the energy hold, by those of the matrix."""
        m, n = self.figures.shape
        return self.figures.rank99 * (m + n + 1) / max(m * n, 1)


class Found(NamedTuple):
    """Everything that `report` shows."""

    path: Path
    lines: list[Line]
    parameters: int
    others: dict[str, tuple[int, ...]]  # shapes of the leaves that are no matrices


def collect(path: Path, where: str | None, axes: str | None) -> Found:
    """Return the spectra of the matrices of a file, or refuse."""
    found = read(path)
    with jax.enable_x64(True if needs_x64(found.arrays) else bool(jax.config.jax_enable_x64)):  # pyright: ignore[reportAttributeAccessIssue]
        leaves = storage.from_arrays(path, found)
        arrays = {name: dense(leaf) for name, leaf in leaves.items()}
        given = axes_of(axes)
        places = _leaves.select(arrays, where_of(where, arrays, given), given, name="report")
        lines = []
        with progress("singular values") as move:
            for done, (name, place) in enumerate(places.items(), 1):
                lines += _lines(name, leaves[name], arrays[name], place)
                move(name, done, len(places))
    others = {name: x.shape for name, x in arrays.items() if name not in places}
    return Found(path, lines, sum(x.size for x in arrays.values()), others)


def _lines(name: str, leaf: Any, array: Any, place: _leaves.Place) -> list[Line]:
    matrix = _checks.working(_leaves.as_matrix(array, place))
    finite = bool(jnp.isfinite(matrix).all())
    values = np.asarray(svdvals(matrix if finite else jnp.full_like(matrix, jnp.nan)))
    dtype = array.dtype.name + ("" if leaf is array else f", rank {_rank(leaf)}")
    *_, m, n = matrix.shape
    found = []
    for index in np.ndindex(values.shape[:-1]):
        label = name + (f"[{', '.join(map(str, index))}]" if index else "")
        row = regularizers.row_of(label, m, n, values[index])
        found.append(Line(dtype, row, values[index]))
    return found


def _rank(leaf: Any) -> int:
    return getattr(leaf, "factors", leaf).s.shape[-1]


def _cells(line: Line) -> tuple[str, ...]:
    row = line.figures
    head = (row.layer, " x ".join(map(str, row.shape)), line.dtype)
    if not line.is_finite:
        return (*head, "NaN", *["-"] * 4, "NaN or Inf")
    figures = (f"{x:.4g}" for x in (row.sigma, row.stable_rank, row.effective_rank))
    share = "dense" if line.share >= 1 else f"{line.share:.1%}"
    return (*head, *figures, str(row.rank90), str(row.rank99), share)


def _sentences(found: Found) -> list[str]:
    parts = [f"{found.parameters:,} parameters in {size(found.path)}"]
    if found.others:
        count = sum(math.prod(shape) for shape in found.others.values())
        parts.append(f"{len(found.others)} other leaves with {count:,} of them")
    lines = ["; ".join(parts)]
    bad = [line.figures.layer for line in found.lines if not line.is_finite]
    if bad:
        lines.append(f"NaN or Inf in {_leaves.listed([(name, None) for name in bad])}")
    high = [name for name, shape in found.others.items() if len(shape) > 2]
    if high:
        listed = _leaves.listed([(name, None) for name in high])
        lines.append(f"of more than two axes, left out without --axes: {listed}")
    return lines


def _text(found: Found) -> str:
    table = [HEADER, *map(_cells, found.lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    lines = []
    for row in table:
        pairs = zip(row, widths, strict=True)
        cells = [x.ljust(w) if i < 3 else x.rjust(w) for i, (x, w) in enumerate(pairs)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_sentences(found)])


def _number(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None  # JSON has neither NaN nor Infinity


def _json(found: Found) -> str:
    matrices = []
    for line in found.lines:
        row = line.figures._asdict()
        row = {key: _number(x) if isinstance(x, float) else x for key, x in row.items()}
        share = line.share if line.is_finite else math.nan
        matrices.append(
            {**row, "dtype": line.dtype, "finite": line.is_finite, "share99": _number(share)}
        )
    others = {name: list(shape) for name, shape in found.others.items()}
    content = {"file": str(found.path), "parameters": found.parameters}
    return dumps({**content, "matrices": matrices, "others": others}, indent=2)


def _html(found: Found) -> str:
    rows = [_cells(line) for line in found.lines]
    spectra = [line.values if line.is_finite else np.zeros(0) for line in found.lines]
    return page.of_report(str(found.path), HEADER, rows, spectra, _sentences(found))


def run(
    path: Path,
    where: str | None,
    axes: str | None,
    top: int | None,
    json: bool,
    html: Path | None,
    force: bool,
) -> int:
    """Print what is asked; raise `Refused` with a sentence for a file that is none."""
    if top is not None and top < 1:
        raise Refused(f"--top must be 1 or more, got {top}")
    if html is not None:
        if html.suffix.lower() not in (".html", ".htm"):
            raise Refused(f"--html must be the name of a .html file, got {str(html)!r}")
        if html.exists() and not force:
            raise Refused(f"{html}: exists already; --force replaces it")
    with sentences():
        found = collect(path, where, axes)
        if top is not None:
            largest = sorted(found.lines, key=lambda line: -math.prod(line.figures.shape))
            found = found._replace(lines=largest[:top])
        print(_json(found) if json else _text(found))
        if html is not None:
            with _files.atomic(html) as temporary:
                temporary.write_text(_html(found), encoding="utf-8")
    return 0
