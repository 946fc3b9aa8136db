"""Spectral penalties, normalisation and a report over the matrices of a parameter pytree.

Any pytree: Flax, Haiku and plain dicts, Equinox modules, nnx.State. `where` and `axes` say which
leaves are matrices, as in every function here:

    where: regular expression searched for in the leaf's path ("encoder/.*kernel"), or predicate
        (path, leaf) -> bool; by default all floating-point leaves of two axes, and those of more
        for which ``axes`` says what rows and columns are.
    axes: for leaves of more than two axes, a pair (rows, columns) of axes or tuples of axes, such
        as ((0, 1, 2), 3) for a convolution's kernel HWIO; pairs by regular expression; or a
        function (path, leaf) -> pair. Remaining axes are batch axes. optax's MuonDimensionNumbers
        are such a pair.
"""

import html
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _checks, _leaves, norms
from ._leaves import Axes, Where
from .primitives.svd import svdvals
from .track import TrackState

MODES = ("at_most", "exact")


def penalty(
    params: Any, norm: Callable[[jax.Array], jax.Array], where: Where = None, axes: Axes = None
) -> jax.Array:
    """Return the sum of norm(W) over the selected matrices W of a pytree.

    Args:
        params: pytree of arrays.
        norm: function of matrices (..., m, n) with values (...,), such as those of `jaxsvd.norms`.
        where: leaves, as described above.
        axes: rows and columns, as described above.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; ``norm`` is not
            a function, or returns something else.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> params = {"dense": {"kernel": jnp.eye(2), "bias": jnp.ones(2)}}
        >>> print(jaxsvd.regularizers.penalty(params, jaxsvd.norms.nuclear))
        2.0
    """
    name = "penalty"
    _checks.function(name, "norm", norm)
    places = _leaves.select(params, where, axes, name=name)
    terms = []
    for path, matrix in _leaves.matrices(params, places).items():
        value = norm(matrix)
        if getattr(value, "shape", None) != matrix.shape[:-2]:
            raise ValueError(
                f"{name}: `norm` must return shape {matrix.shape[:-2]} for leaf {path!r}, got "
                f"{_checks.describe(value)}"
            )
        terms.append(jnp.sum(value))
    return _total(terms)


def _total(terms: list[jax.Array]) -> jax.Array:
    if not terms:
        return jnp.zeros(())
    dtype = np.result_type(*(term.dtype for term in terms))
    return jnp.sum(jnp.stack([term.astype(dtype) for term in terms]))


def spectral_norm(
    params: Any, where: Where = None, power: float = 2, axes: Axes = None
) -> jax.Array:
    """Return sum s_1(W)^power over the selected matrices: the penalty of Yoshida and Miyato.

    Exact, with gradient power s_1^(power - 1) u_1 v_1^H; `norms.spectral_step` follows s_1 at a
    fraction of the cost.

    Args:
        params: pytree of arrays.
        where: leaves, as described above.
        power: number > 0.
        axes: rows and columns, as described above.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path; power <= 0.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"w": jnp.diag(jnp.array([3.0, 1.0])), "b": jnp.ones(2)}
        >>> print(jax.grad(jaxsvd.regularizers.spectral_norm)(params)["w"])
        [[6. 0.]
         [0. 0.]]

    References:
        Yoshida and Miyato (2017), "Spectral norm regularization for improving the generalizability
        of deep learning", equation 3.
    """
    name = "spectral_norm"
    power = _checks.positive(name, "power", power)
    places = _leaves.select(params, where, axes, name=name)
    matrices = _leaves.matrices(params, places)
    return _total([jnp.sum(norms.spectral(matrix) ** power) for matrix in matrices.values()])


class NormalizeState(NamedTuple):
    """What `spectral_normalize` carries from step to step; a pytree to save and restore.

    Attributes:
        tracked: by path of the leaf, the leading subspace of its matrices.
    """

    tracked: dict[str, TrackState]


def spectral_normalize_init(
    params: Any, where: Where = None, axes: Axes = None, *, extra: int = norms.largest.EXTRA
) -> NormalizeState:
    """Return the state before the first step of `spectral_normalize`.

    Args:
        params: pytree of arrays or jax.ShapeDtypeStruct; values do not matter.
        where: leaves, as described above.
        axes: rows and columns, as described above.
        extra: static; columns carried for each matrix beyond the first.

    Returns:
        NormalizeState.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, by its path.
    """
    places = _leaves.select(params, where, axes, name="spectral_normalize_init")
    return NormalizeState(
        {
            path: norms.spectral_init(shape, extra=extra)
            for path, shape in _leaves.shapes(params, places).items()
        }
    )


def spectral_normalize(
    params: Any,
    state: NormalizeState,
    where: Where = None,
    max_norm: Any = 1.0,
    mode: str = "at_most",
    axes: Axes = None,
    *,
    update: bool = True,
) -> tuple[Any, NormalizeState]:
    """Return params with every selected matrix scaled by its tracked s_1, and the next state.

        "exact": W max_norm / s_1          "at_most": W min(1, max_norm / s_1)

    Nothing is changed in place: the raw parameters stay what the optimizer moves, the scaled ones
    are what the model is called with, and gradients pass through s_1. For training keep the state
    that comes back; for evaluation pass ``update=False``: the same scaled parameters for the same
    (params, state), and the state comes back as it was. s_1 is the tracker's, which is never above
    the true one; `norms.spectral_bound` certifies a result.

    Cost: two products of each matrix with 1 + extra columns.

    Args:
        params: pytree of arrays.
        state: from `spectral_normalize_init` or the last step.
        where: leaves, as described above; as for the state.
        max_norm: number > 0, may be traced.
        mode: "at_most" or "exact".
        axes: rows and columns, as described above; as for the state.
        update: static; False for evaluation.

    Returns:
        (params, state) of the structure that came.

    Raises:
        TypeError, ValueError: ``where`` or ``axes`` do not fit a leaf, or the state is of other
            leaves or shapes, by path; max_norm <= 0; unknown mode.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> from jaxsvd import regularizers
        >>> params = {"w": jnp.diag(jnp.array([4.0, 1.0])), "b": jnp.ones(2)}
        >>> state = regularizers.spectral_normalize_init(params)
        >>> scaled, state = regularizers.spectral_normalize(params, state)
        >>> print(scaled["w"])
        [[1.   0.  ]
         [0.   0.25]]

    References:
        Miyato, Kataoka, Koyama and Yoshida (2018), "Spectral normalization for generative
        adversarial networks", equation 8.
    """
    name = "spectral_normalize"
    max_norm = _checks.positive(name, "max_norm", max_norm)
    mode = _checks.choice(name, "mode", mode, MODES)
    update = _checks.flag(name, "update", update)
    places = _leaves.select(params, where, axes, name=name)
    if not isinstance(state, NormalizeState) or set(state.tracked) != set(places):
        held = sorted(state.tracked) if isinstance(state, NormalizeState) else state
        other = sorted(set(held) ^ set(places)) if isinstance(held, list) else sorted(places)
        raise ValueError(
            f"{name}: `state` must come from spectral_normalize_init for the same leaves, got "
            f"{_checks.describe(held)}, which differs at {', '.join(other)}"
        )
    leaves = jax.tree.leaves(params)
    scaled, following = {}, {}
    for path, matrix in _leaves.matrices(params, places).items():
        try:
            sigma, following[path] = norms.spectral_step(matrix, state.tracked[path])
        except ValueError as error:
            raise ValueError(f"{name}: `state` does not fit leaf {path!r}: {error}") from None
        # A matrix that is not to be scaled is passed on with its own bits.
        limit = jnp.asarray(max_norm, sigma.dtype)
        positive = jnp.where(sigma > 0, sigma, 1)
        factor = jnp.where(sigma > 0, limit / positive, 1)
        factor = jnp.where(sigma > limit, factor, 1) if mode == "at_most" else factor
        value = matrix * factor[..., None, None].astype(matrix.dtype)
        place = places[path]
        scaled[path] = _leaves.restore(value, leaves[place.index], place)
    params = _leaves.replace(params, places, scaled)
    return params, NormalizeState(following) if update else state


class Row(NamedTuple):
    """The spectrum of one matrix in numbers.

    Attributes:
        layer: path of the leaf, with the index of the matrix in its batch axes.
        shape: rows and columns.
        sigma: largest singular value.
        stable_rank: |W|_F^2 / s_1^2.
        effective_rank: exp of the entropy of s_i / sum s_j.
        condition: s_1 / s_min, infinite at deficient rank.
        rank90: how many singular values hold 90 % of the energy sum s_i^2.
        rank99: how many hold 99 %.
    """

    layer: str
    shape: tuple[int, int]
    sigma: float
    stable_rank: float
    effective_rank: float
    condition: float
    rank90: int
    rank99: int


HEADER = ("layer", "shape", "sigma_1", "stable", "effective", "condition", "90 %", "99 %")


class Report(NamedTuple):
    """A table of spectra; prints aligned, renders as HTML in a notebook.

    Attributes:
        rows: one for each matrix.
        left_out: paths of leaves of more than two axes that `axes` does not cover.
    """

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]

    def _cells(self) -> list[tuple[str, ...]]:
        cells = []
        for row in self.rows:
            figures = (row.sigma, row.stable_rank, row.effective_rank, row.condition)
            shape = f"{row.shape[0]} x {row.shape[1]}"
            figures = tuple(f"{figure:.4g}" for figure in figures)
            cells.append((row.layer, shape, *figures, str(row.rank90), str(row.rank99)))
        return cells

    def _note(self) -> str:
        return f"left out, `axes` wanted: {', '.join(self.left_out)}" if self.left_out else ""

    def __str__(self) -> str:
        table = [HEADER, *self._cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in table
        ]
        return "\n".join([*lines, *filter(None, [self._note()])])

    def _repr_html_(self) -> str:
        def line(cells, tag):
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

        body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in self._cells())
        table = f"<table><thead><tr>{line(HEADER, 'th')}</tr></thead><tbody>{body}</tbody></table>"
        return table + (f"<p>{html.escape(self._note())}</p>" if self.left_out else "")


def row_of(layer: str, m: int, n: int, s: np.ndarray) -> Row:
    """Return the row of a matrix (m, n) of singular values s, descending."""
    shape = m, n
    largest = s[0] if s.size and s[0] > 0 else np.nan
    x = s.astype(np.float64) / largest
    p = x / np.sum(x)
    p = p[p > 0]
    energy = np.cumsum(x**2) / np.sum(x**2)
    ranks = [int(np.searchsorted(energy, share - 1e-12) + 1) for share in (0.9, 0.99)]
    if not np.isfinite(energy).all() or not s.size:  # a zero matrix, or one with NaN
        rank = 0.0 if s.size == 0 or s[0] == 0 else np.nan
        sigma = float(s[0]) if s.size else 0.0
        return Row(layer, shape, sigma, rank, rank, np.nan, 0, 0)
    condition = np.inf if x[-1] == 0 else 1 / x[-1]
    effective = np.exp(-np.sum(p * np.log(p)))
    return Row(layer, shape, float(s[0]), np.sum(x**2), effective, condition, *ranks)


def spectra(
    name: str, params: Any, where: Where = None, axes: Axes = None
) -> Iterator[tuple[str, tuple[int, int], np.ndarray]]:
    """Yield path, shape (m, n) and singular values of each selected matrix, batches one by one."""
    places = _leaves.select(params, where, axes, name=name)
    for path, matrix in _leaves.matrices(params, places).items():
        if isinstance(matrix, Tracer):
            raise TypeError(f"{name}: leaf {path!r} must be a concrete array, got a traced one")
        values = np.asarray(svdvals(_checks.working(matrix)))
        for index in np.ndindex(values.shape[:-1]):
            layer = path + (f"[{', '.join(map(str, index))}]" if index else "")
            yield layer, (matrix.shape[-2], matrix.shape[-1]), values[index]


def report(params: Any, where: Where = None, axes: Axes = None) -> Report:
    """Return a table of the spectra of the selected matrices, from one SVD each.

    Args:
        params: pytree of concrete arrays.
        where: leaves, as described above.
        axes: rows and columns, as described above; a leaf with batch axes has a row for each
            matrix.

    Returns:
        Report: prints as a table, renders as HTML in a notebook, ``rows`` for programs.

    Raises:
        TypeError: called under jit; otherwise as `penalty`.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.regularizers.report({"w": jnp.diag(jnp.array([4.0, 2.0])), "b": 1.0}))
        layer  shape  sigma_1  stable  effective  condition  90 %  99 %
        w      2 x 2        4    1.25       1.89          2     2     2
    """
    name = "report"
    rows = [row_of(layer, *shape, s) for layer, shape, s in spectra(name, params, where, axes)]
    places = _leaves.select(params, where, axes, name=name)
    left_out = [
        path
        for path, leaf in _leaves.paths(params)
        if where is None and path not in places and len(getattr(leaf, "shape", ())) > 2
    ]
    return Report(tuple(rows), tuple(left_out))
