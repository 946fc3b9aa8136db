"""Curves of singular values: of matrices side by side, and over the steps of a training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks
from . import data
from .style import SEQUENTIAL, drawing, line, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("values", "energy", "error")

_FEW = 40  # points of a curve that are marked one by one
_NAMED = 7  # curves of a history that have a name each; more have a bar of colours


def _logarithmic(ax: "Axes", drawn: Any) -> None:
    """Make y logarithmic where there is anything above zero to draw."""
    if any((y > 0).any() for y in drawn):
        ax.set_yscale("log")


def _points(kind: str, s: np.ndarray, relative: bool) -> tuple[np.ndarray, np.ndarray]:
    if kind == "energy":
        return np.arange(1, s.size + 1), 100 * data.energy(s)
    if kind == "error":
        return np.arange(s.size + 1), data.tails(s)
    return np.arange(1, s.size + 1), s / s[0] if relative and s[0] > 0 else s


def spectrum(a: Any, *, kind: str = "values", relative: bool = False, ax: Any = None) -> "Axes":
    """Draw the singular values of a matrix, or of several: a scree plot, the energy, the error.

        values: s_i;   energy: sum_{j <= i} s_j^2 / sum_j s_j^2;   error: |A - A_r|_F / |A|_F

    Zeros have no place on the logarithmic axis of values and errors, and are left out.

    Args:
        a: matrix (m, n), real or complex; singular values (k,); an `SVDResult`; or a mapping from
            names to any of these.
        kind: "values", "energy" in percent, or "error" of the best approximation of rank r.
        relative: draw s_i / s_1 in place of s_i.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: traced arrays, batches, NaN, singular values below zero.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.spectrum(jnp.diag(jnp.array([3.0, 1.0])), kind="energy")
        >>> print(ax.lines[0].get_ydata(), ax.get_ylabel())
        [ 90. 100.] energy of the leading values / %
    """
    name = "plot.spectrum"
    _checks.choice(name, "kind", kind, KINDS)
    _checks.flag(name, "relative", relative)
    several = isinstance(a, Mapping)
    if several and not a:
        raise ValueError(f"{name}: `a` must name one matrix or more, got an empty mapping")
    found = {key: data.values(name, x, f"a[{key!r}]") for key, x in a.items()} if several else None
    found = found or {"": data.values(name, a)}
    curves = {key: _points(kind, s, relative) for key, s in found.items()}
    with drawing(name, ax) as ax:
        for index, (key, (x, y)) in enumerate(curves.items()):
            marker = "o" if x.size <= _FEW else None
            shown = y if kind == "energy" else np.where(y > 0, y, np.nan)
            ax.plot(x, shown, marker=marker, label=str(key) or None, **line(index))
        ax.set_xlabel("rank r" if kind == "error" else "index i")
        if kind == "energy":
            ax.set(ylabel="energy of the leading values / %", ylim=(None, 101))
        else:
            _logarithmic(ax, [y for _, y in curves.values()])
            value = "singular value $s_i / s_1$" if relative else "singular value $s_i$"
            ax.set_ylabel("relative error, Frobenius norm" if kind == "error" else value)
        whole_numbers(ax.xaxis)
        if several:
            ax.legend()
    return ax


def _history(name: str, history: Any) -> np.ndarray:
    if isinstance(history, list | tuple):
        if not history:
            raise ValueError(f"{name}: `history` must hold one matrix or more, got an empty list")
        rows = [data.values(name, x, f"history[{i}]") for i, x in enumerate(history)]
        if len({row.size for row in rows}) != 1:
            sizes = sorted({row.size for row in rows})
            raise ValueError(f"{name}: `history` must hold matrices of one shape, got {sizes}")
        return np.stack(rows)
    a = data.concrete(name, history, "history", real=getattr(history, "ndim", 0) == 2)
    if a.ndim not in (2, 3) or not a.size:
        raise ValueError(
            f"{name}: `history` must have shape (steps, k) for singular values or (steps, m, n) "
            f"for matrices, got {a.shape}"
        )
    return np.stack([data.values(name, x, "history") for x in a])


def spectrum_history(
    history: Any, *, steps: Any = None, k: int | None = None, ax: Any = None
) -> "Axes":
    """Draw how the singular values of a weight move over the steps of a training.

    Args:
        history: singular values (steps, k), matrices (steps, m, n), or a list of either.
        steps: array or list (steps,), where each row stands on the x axis; by default 0, 1, 2, ...
        k: draw the k largest only.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes, with one line for each singular value.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: traced arrays, NaN, shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> weights = [jnp.diag(jnp.array([1.0 + t, 1.0])) for t in range(3)]
        >>> ax = jaxsvd.plot.spectrum_history(weights)
        >>> print(ax.lines[0].get_ydata())
        [1. 2. 3.]
    """
    name = "plot.spectrum_history"
    rows = _history(name, history)
    count, most = rows.shape
    shown = most if k is None else _checks.static_int(name, "k", k, 1, most)
    steps = range(count) if steps is None else steps
    steps = np.asarray(steps) if isinstance(steps, list | tuple | range) else steps
    x = np.asarray(data.concrete(name, steps, "steps"))
    if x.shape != (count,):
        raise ValueError(f"{name}: `steps` must have shape ({count},), got {x.shape}")
    with drawing(name, ax) as ax:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        # Up to 0.9 of the colours: the last ones are too light for lines on white.
        scale = ScalarMappable(Normalize(1, 1 + max(shown - 1, 1) / 0.9), SEQUENTIAL)
        marker = "o" if count <= _FEW // 2 else None
        for i in range(shown):
            y = np.where(rows[:, i] > 0, rows[:, i], np.nan)
            style = {"color": scale.to_rgba(i + 1), "marker": marker, "zorder": 3 - i / shown}  # pyright: ignore[reportArgumentType]
            ax.plot(x, y, label=f"$s_{{{i + 1}}}$", **style)
        _logarithmic(ax, [rows[:, :shown]])
        ax.set(xlabel="step", ylabel="singular value $s_i$")
        if shown <= _NAMED:
            ax.legend(ncols=2 if shown > 3 else 1)
        else:
            ax.figure.colorbar(scale, ax=ax, label="index i").ax.set_ylim(1, shown)
    return ax
