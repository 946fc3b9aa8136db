"""Maps in colours: where a derivative is safe, and the spectra of a whole checkpoint."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _files, _tolerances, regularizers
from .._leaves import Axes as LeafAxes
from .._leaves import Where
from ..compress import storage
from ..compress.stored import densify
from . import data
from .style import SEQUENTIAL, VERMILION, drawing, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED = 12  # up to so many values each cell says its digits
_FLOOR = 1e-6  # values of a report below it, relative to the largest, have the darkest colour
_COLUMNS = 256  # of the map of a report, whatever the number of values


def gap_map(a: Any, *, ax: Any = None) -> "Axes":
    """Draw how many digits the derivative of each pair of raw singular vectors keeps.

        off the diagonal: log10(|s_i - s_j| / (eps s_1));   on it: log10(s_i / (eps s_1))

    The rule of `svd` divides by s_i - s_j and by s_i. A cross marks what counts as a tie
    (`degeneracy_tol`) or as zero (`rank_tol`), where raw vectors have no derivative: there use
    `core_svd`, `spectral_map`, or a loss of the subspace, which divide by no gap inside it.

    Args:
        a: matrix (m, n), real or complex; singular values (k,); or an `SVDResult`. Its dtype
            decides what eps is, float32 for half precision.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes; ``ax.images[0].get_array()`` holds the digits (k, k).

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a traced array, a batch, NaN, singular values below zero.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.gap_map(jnp.array([2.0, 2.0, 1.0]))  # a tie of the first two
        >>> digits = ax.images[0].get_array()
        >>> print(float(digits[0, 1]), round(float(digits[0, 2]), 2))
        0.0 15.35
    """
    name = "plot.gap_map"
    s = data.values(name, a)
    largest = s[0] if s[0] > 0 else 1.0
    shape = getattr(a, "shape", ()) if getattr(a, "ndim", 0) == 2 else (s.size, s.size)
    zero = s <= _tolerances.rank_tol(s.dtype, *shape) * largest
    tied = np.abs(s[:, None] - s) <= _tolerances.degeneracy_tol(s.dtype) * largest
    marked = np.where(np.eye(s.size, dtype=bool), zero, tied)
    x = s.astype(np.float64) / float(largest)
    distance = np.where(np.eye(s.size, dtype=bool), x[:, None], np.abs(x[:, None] - x))
    eps = _tolerances.eps(s.dtype)
    digits = np.log10(np.maximum(distance / eps, 1.0))
    with drawing(name, ax) as ax:
        ends = (0.5, s.size + 0.5)
        look = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": -np.log10(eps), "interpolation": "nearest"}
        image = ax.imshow(digits, extent=(*ends, *reversed(ends)), **look)
        ax.grid(False)
        rows, columns = np.nonzero(marked)
        size = min(9.0, 160 / s.size)
        look = {"color": VERMILION, "markersize": size, "markeredgewidth": size / 4}
        ax.plot(columns + 1, rows + 1, "x", linestyle="none", **look)
        if s.size <= _NUMBERED:
            for i, j in zip(*np.nonzero(~marked), strict=True):
                dark = digits[i, j] < -0.6 * np.log10(eps)
                words = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
                ax.text(j + 1, i + 1, f"{digits[i, j]:.0f}", fontsize=8, **words)
        whole_numbers(ax.xaxis)
        whole_numbers(ax.yaxis)
        ax.set(xlabel="index j", ylabel="index i (diagonal: the value itself)")
        ax.figure.colorbar(image, ax=ax, label=f"digits kept, {s.dtype.name}")
    return ax


def report(params: Any, where: Where = None, axes: LeafAxes = None, *, ax: Any = None) -> "Axes":
    """Draw the spectra of all matrices of a checkpoint or a pytree, a row for each.

    The colour is s_i / s_1, its logarithm; x is i / min(m, n). A triangle stands at the rank that
    holds 90 % of the energy sum s_i^2, a circle at 99 %. `regularizers.report` is the table of it.

    Args:
        params: path of a .safetensors or .npz file, compressed or not; or a pytree of arrays.
        where: leaves, as in `regularizers`.
        axes: rows and columns of leaves of more than two axes, as in `regularizers`.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed; safetensors is not, for such a file.
        OSError: the file cannot be read.
        TypeError, ValueError: traced or complex leaves, NaN or Inf; no matrix at all; ``where`` or
            ``axes`` do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.report({"layer": {"kernel": jnp.diag(jnp.array([4.0, 2.0, 1.0]))}})
        >>> print(ax.get_yticklabels()[0].get_text())
        layer/kernel
    """
    name = "plot.report"
    if isinstance(params, (str, os.PathLike)):
        params = storage.from_arrays(params, _files.read_checkpoint(params))
    found = list(regularizers.spectra(name, densify(params), where, axes))
    if not found:
        raise ValueError(f"{name}: `params` must hold a matrix, got none that `where` selects")
    for layer, _, s in found:
        if not s.size:
            raise ValueError(f"{name}: leaf {layer!r} must not be empty")
        if not np.isfinite(s).all():
            raise ValueError(f"{name}: leaf {layer!r} must be finite, got NaN or Inf")
    picked = [s[np.arange(_COLUMNS) * s.size // _COLUMNS] / max(s[0], 1e-300) for _, _, s in found]
    levels = np.log10(np.maximum(np.stack(picked).astype(np.float64), _FLOOR))
    table = [regularizers.row_of(layer, *shape, s) for layer, shape, s in found]
    with drawing(name, ax) as new:
        if ax is None:
            new.figure.set_size_inches(7.5, 1.4 + 0.24 * len(found))  # pyright: ignore[reportAttributeAccessIssue]
        box = (0, 100, len(found) - 0.5, -0.5)
        look = {"cmap": SEQUENTIAL, "vmin": np.log10(_FLOOR), "vmax": 0}
        image = new.imshow(levels, extent=box, aspect="auto", interpolation="nearest", **look)
        new.grid(False)
        for field, marker in (("rank90", "v"), ("rank99", "o")):
            share = [100 * getattr(r, field) / min(r.shape) for r in table]
            label = f"{field[-2:]} % of the energy"
            (marks,) = new.plot(share, np.arange(len(found)), marker, label=label, clip_on=False)
            marks.set(color="white", markeredgecolor="black", linestyle="none")
        new.set_yticks(np.arange(len(found)), [layer for layer, _, _ in found])
        new.set(xlabel="index i, in % of min(m, n)", xlim=(0, 100))
        new.figure.colorbar(image, ax=new, label="$\\log_{10}\\, s_i / s_1$", extend="min")
        new.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return new
