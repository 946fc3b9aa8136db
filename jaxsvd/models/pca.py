"""Principal component analysis: dense, sparse, operators; whole, by variance, batch after batch.

A state is a pytree of five arrays; everything else follows from them. Conventions and results are
those of scikit-learn: variances over m - 1, signs by the components (`svd_flip` with
``u_based_decision=False``), the probabilistic model of Tipping and Bishop for the score.
"""

import dataclasses
import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks, _tolerances
from .._types import SVDResult
from ..algorithms.phase import column_phases
from ..algorithms.products import product
from ..operators.adapters import as_operator
from ..operators.base import Operator
from ..operators.compose import Centered
from ..operators.dense import Dense
from ..primitives.truncated import FULL_UP_TO, METHODS, truncated_svd
from ._moments import center, total_squares

# Components with which the search for an amount of variance begins; each round takes four times
# as many.
FIRST_TRIAL = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """A fitted model: what `transform`, `score_samples` and `update` need.

    Attributes:
        mean: of each feature, (n,).
        components: the principal axes as orthonormal rows, largest variance first, (k, n).
        singular_values: of the centred samples, (k,).
        total_variance: sum of the variances of all features, ().
        samples: how many were seen, (), an integer.
        whiten: static; whether scores are divided by their standard deviation.
    """

    mean: jax.Array
    components: jax.Array
    singular_values: jax.Array
    total_variance: jax.Array
    samples: jax.Array
    whiten: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def explained_variance(self) -> jax.Array:
        """Variance of each score, s^2 / (m - 1), (k,)."""
        divisor = (self.samples - 1).astype(self.singular_values.dtype)
        return self.singular_values**2 / divisor[..., None]

    @property
    def explained_variance_ratio(self) -> jax.Array:
        """The same by the total variance, (k,); zeros where nothing varies."""
        total = self.total_variance
        return self.explained_variance / jnp.where(total == 0, 1, total)[..., None]

    @property
    def noise_variance(self) -> jax.Array:
        """Mean variance of the directions left out, (); zero where none are, or to rounding.

        (total - sum of the explained) / (min(m, n) - k), the maximum of the likelihood for m > n.
        """
        k, n = self.components.shape[-2:]
        total = self.total_variance
        rest = total - jnp.sum(self.explained_variance, axis=-1)
        rest = jnp.where(rest <= _negligible(self) * total, 0, rest)
        count = jnp.minimum(self.samples, n) - k
        return jnp.where(count > 0, rest / jnp.maximum(count, 1).astype(rest.dtype), 0 * rest)


def _negligible(state: State) -> float:
    """Return what counts as zero, relative to the largest."""
    return _tolerances.rank_tol(state.singular_values.dtype, *state.components.shape[-2:])


# ---------------------------------------------------------------------------------------- fitting


def _leading(a: Any, k: int, solver: str, tol: float | None) -> tuple[jax.Array, jax.Array]:
    """Return singular values and right vectors, the largest entry of each vector positive."""
    _, S, Vh = cast(SVDResult, truncated_svd(a, k, method=solver, tol=tol))
    return S, Vh * column_phases(Vh.mT)[:, None]


@functools.partial(jax.jit, static_argnames=("k", "solver", "tol", "whiten"))
def _fit_array(x: jax.Array, k: int, solver: str, tol: float | None, whiten: bool) -> State:
    m = x.shape[0]
    x, mean = center(_checks.working(x))
    S, Vh = _leading(x, k, solver, tol)
    return State(mean, Vh, S, jnp.sum(x**2) / (m - 1), jnp.asarray(m, jnp.int32), whiten)


def _fit_operator(A: Operator, k: int, solver: str, tol: float | None, whiten: bool) -> State:
    """Fit without a copy of A: centred implicitly. Not jitted, for operators that cannot be."""
    m = A.shape[0]
    centred = Centered.of_columns(A)
    # A dense copy only where the bases of the iteration would be as large.
    S, Vh = _leading(centred, k, "krylov" if solver == "auto" else solver, tol)
    scatter = total_squares(A) - m * jnp.sum(centred.mean**2)
    # All of it is at least what the kept components hold: NaN and rounding included.
    scatter = jnp.maximum(scatter, jnp.sum(S**2))
    return State(centred.mean, Vh, S, scatter / (m - 1), jnp.asarray(m, jnp.int32), whiten)


def _samples(name: str, x: Any, rows: int = 1) -> jax.Array | Operator:
    """Return real samples as an array (m, n) or an operator, or raise."""
    if not isinstance(x, (jax.Array, np.ndarray, Operator)):
        x = as_operator(x, name=name)
    if isinstance(x, Operator):
        x = x.a if isinstance(x, Dense) else x
    if not isinstance(x, Operator):
        x = _checks.array(name, x, "x")
    if len(x.shape) != 2:
        raise ValueError(
            f"{name}: `x` must have shape (samples, features) (jax.vmap for more), got {x.shape}"
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: `x` must be real, got dtype {x.dtype}")
    if x.shape[0] < rows:
        raise ValueError(f"{name}: `x` must hold at least {rows} samples, got shape {x.shape}")
    return x


def fit(
    x: Any,
    k: int | None = None,
    *,
    energy: float | None = None,
    solver: str = "auto",
    tol: float | None = None,
    whiten: bool = False,
) -> State:
    """Return the k principal components of samples: mean, axes, variances.

        X - 1 mean^T = U S V^T,   components = V^T,   explained variance = S^2 / (m - 1)

    An array is centred in a copy. A sparse matrix or an operator is centred implicitly, by products
    alone, so nothing of size m x n is made; in float32 a mean much larger than the spread costs
    digits there. Besides its products with A this takes the sum of all squared entries: one pass
    over a sparse matrix, min(m, n) products with any other operator.

    Differentiable in x, or in the values of a sparse matrix, by the rule of `truncated_svd`: any
    loss at distinct singular values, losses of the subspace (reconstructions) at ties inside it
    too. At a tie across the cut, s_k = s_{k+1}, there is no derivative.

    Constant features get no weight. Beyond the rank (m - 1 at most) components are an orthonormal
    continuation with variance zero. NaN or Inf in x gives NaN.

    Cost: that of `truncated_svd`, a copy of x for arrays.

    Args:
        x: samples by features (m, n), m >= 2, real: array, BCOO, BCSR or SciPy sparse matrix, or
            operator.
        k: static, 1 <= k <= min(m, n), the default.
        energy: instead of k: the fewest components that hold this share of the total variance,
            0 < energy <= 1. It needs the values, so it works outside of jit only.
        solver: static; the ``method`` of `truncated_svd`. "auto" makes no dense copy of an operator
            unless k is a good part of min(m, n).
        tol: static; residual of the triplets relative to s_1, as in `truncated_svd`. In single
            precision 1e-4 takes 0.8 of the time of the default on a slow spectrum.
        whiten: static; divide scores by their standard deviation.

    Returns:
        State; in float32 for half precision.

    Raises:
        TypeError: ``x`` is complex or no matrix in any form; ``k`` traced; ``energy`` under jit.
        ValueError: one sample; k out of range; both k and energy; energy of data that hold NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
        >>> model = pca.fit(x, 1)
        >>> print(model.mean, jnp.round(model.components, 4))
        [3. 4.] [[0.7071 0.7071]]
        >>> print(jnp.round(model.explained_variance, 4), model.explained_variance_ratio)
        [13.3333] [1.]

    References:
        Jolliffe (2002), "Principal Component Analysis", sections 3.5 and 6.1; Halko, Martinsson,
        Shkolnisky and Tygert (2011), SIAM J. Sci. Comput. 33, section 3 (implicit centring).
    """
    name = "pca.fit"
    x = _samples(name, x, rows=2)
    smallest = min(x.shape)
    if k is not None and energy is not None:
        raise ValueError(f"{name}: give `k` or `energy`, not both, got k={k} and energy={energy}")
    _checks.choice(name, "solver", solver, METHODS)
    _checks.flag(name, "whiten", whiten)
    run = _fit_operator if isinstance(x, Operator) else _fit_array
    if energy is None:
        wanted = smallest if k is None else _checks.static_int(name, "k", k, 1, smallest)
        return run(x, wanted, solver, tol, whiten)
    if isinstance(energy, (bool, np.bool_)) or not isinstance(energy, (int, float, np.number)):
        raise TypeError(f"{name}: `energy` must be a Python float, got {_checks.describe(energy)}")
    if not 0 < energy <= 1:
        raise ValueError(f"{name}: `energy` must satisfy 0 < energy <= 1, got {energy}")
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        raise TypeError(f"{name}: `energy` must be used outside of jit: it looks at values; give k")
    trial = smallest if smallest <= FULL_UP_TO else FIRST_TRIAL
    while True:
        state = run(x, trial, solver, tol, whiten)
        shares = np.cumsum(np.asarray(state.explained_variance_ratio, np.float64))
        if not np.isfinite(shares[-1]):
            raise ValueError(f"{name}: `x` must be finite to count its energy, got NaN or Inf")
        reached = shares >= energy - _negligible(state)
        if reached[-1] or trial == smallest:
            break
        trial = min(4 * trial, smallest)
    # Constant samples have no energy: one component then.
    rank = int(np.argmax(reached)) + 1 if shares[-1] > 0 else 1
    return dataclasses.replace(
        state,
        components=state.components[:rank],
        singular_values=state.singular_values[:rank],
    )


@jax.jit
def _update(state: State, x: jax.Array) -> State:
    S, Vh = state.singular_values, state.components
    batch, (x, mean) = x.shape[0], center(x)
    count = state.samples.astype(S.dtype)
    total = count + batch
    # The means of what was seen and of the batch differ: one more row carries that.
    shift = jnp.sqrt(count / total * batch) * (state.mean - mean)
    rows = jnp.concatenate([S[:, None] * Vh, x, shift[None, :]])
    scatter = (count - 1) * state.total_variance + jnp.sum(x**2) + jnp.sum(shift**2)
    mean = state.mean + (mean - state.mean) * (batch / total)
    S, Vh = _leading(rows, Vh.shape[0], "auto", None)
    return State(mean, Vh, S, scatter / (total - 1), state.samples + batch, state.whiten)


def update(state: State, batch: Any) -> State:
    """Return the model after one more batch of samples, as scikit-learn's IncrementalPCA.

        [diag(s) V^T; B - 1 b^T; sqrt(m_0 b_0 / (m_0 + b_0)) (mean - b)^T] = U' S' V'^T

    with b the mean of the b_0 samples B. The k leading triplets are kept: mean, total variance and
    count stay exact, while the axes know of the past only what the k kept components hold of it.
    The noise variance comes from the exact total, so what was dropped of earlier batches counts as
    noise; IncrementalPCA estimates it from the last batch alone. Differentiable in both arguments;
    in a scan the state keeps its structure.

    Cost: k leading triplets of a (k + b_0 + 1, n) matrix; memory of that size, however many samples
    were seen.

    Args:
        state: from `fit` of a first batch of at least k samples, or from the last update.
        batch: real array (b_0, n), b_0 >= 1; computed in the dtype of the state.

    Returns:
        State, with as many components.

    Raises:
        TypeError: ``batch`` is not an array, or complex.
        ValueError: another number of features; an empty batch.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jax.random.normal(jax.random.key(0), (60, 3)) * jnp.array([[3.0, 2.0, 1.0]])
        >>> model = pca.fit(x[:20], 3)
        >>> for i in (20, 40):
        ...     model = pca.update(model, x[i : i + 20])
        >>> whole = pca.fit(x, 3)
        >>> bool(jnp.allclose(model.explained_variance, whole.explained_variance, rtol=1e-4))
        True

    References:
        Ross, Lim, Lin and Yang (2008), Int. J. Computer Vision 77, section 3.1, figure 1.
    """
    name = "pca.update"
    return _update(state, _rows(name, state, batch, "batch"))


# ------------------------------------------------------------------------------------ using a model


def _rows(name: str, state: State, x: Any, argument: str, width: int | None = None) -> jax.Array:
    """Return real rows (m, width) in the dtype of the state, or raise."""
    width = state.components.shape[1] if width is None else width
    x = _checks.array(name, x, argument)
    if jnp.iscomplexobj(x):
        raise TypeError(f"{name}: `{argument}` must be real, got dtype {x.dtype}")
    if x.ndim != 2 or x.shape[1] != width or x.shape[0] == 0:
        raise ValueError(
            f"{name}: `{argument}` must have shape (samples, {width}) with at least one sample, "
            f"got {x.shape}"
        )
    return x.astype(state.mean.dtype)


def _deviations(state: State) -> tuple[jax.Array, jax.Array]:
    """Return the standard deviation of each score and its pseudoinverse, (k,) each."""
    variance = state.explained_variance
    zero = variance <= _negligible(state) ** 2 * variance[:1]
    deviation = jnp.sqrt(jnp.where(zero, 1, variance))
    return jnp.where(zero, 0, deviation), jnp.where(zero, 0, 1 / deviation)


def _scores(state: State, x: jax.Array | Operator) -> jax.Array:
    axes = state.components.mT
    if isinstance(x, Operator):
        scores = Centered(x, state.mean).matmat(axes)
    else:
        scores = product(x - state.mean[None, :], axes)
    return scores * _deviations(state)[1][None, :] if state.whiten else scores


_scores_of_array = jax.jit(_scores)  # operators that cannot be jitted take the other


def transform(state: State, x: Any) -> jax.Array:
    """Return the scores of samples: their coordinates along the components.

        Y = (X - 1 mean^T) V,   whitened: Y diag(variance)^(-1/2)

    Whitening drops components of variance zero: their scores are 0.

    Cost: one product of m n k, with the nonzeros only for a sparse matrix.

    Args:
        state: from `fit` or `update`.
        x: samples (m, n) in any form that `fit` takes.

    Returns:
        Array (m, k), in the dtype of the state.

    Raises:
        TypeError: ``x`` is complex or no matrix in any form.
        ValueError: another number of features; no samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> print(jnp.round(pca.transform(pca.fit(x, 1), x), 4))
        [[-5.]
         [ 0.]
         [ 5.]]

    References:
        Jolliffe (2002), "Principal Component Analysis", section 2.3.
    """
    name = "pca.transform"
    x = _samples(name, x)
    if not isinstance(x, Operator):
        return _scores_of_array(state, _rows(name, state, x, "x"))
    n = state.components.shape[1]
    if x.shape[1] != n:
        raise ValueError(f"{name}: `x` must have shape (samples, {n}), got {x.shape}")
    return _scores(state, x)


@jax.jit
def _inverse_transform(state: State, scores: jax.Array) -> jax.Array:
    if state.whiten:
        scores = scores * _deviations(state)[0][None, :]
    return state.mean[None, :] + product(scores, state.components)


def inverse_transform(state: State, scores: Any) -> jax.Array:
    """Return the samples that belong to scores: X = 1 mean^T + Y V^T.

    After `transform` this is the orthogonal projection of each sample on the affine subspace of
    the model.

    Cost: one product of m n k.

    Args:
        state: from `fit` or `update`.
        scores: array (m, k), whitened where the state is.

    Returns:
        Array (m, n), in the dtype of the state.

    Raises:
        TypeError: ``scores`` is not an array, or complex.
        ValueError: another number of components; no samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> model = pca.fit(x, 1, whiten=True)
        >>> print(jnp.round(jnp.abs(pca.inverse_transform(model, pca.transform(model, x))), 4))
        [[0. 0.]
         [3. 4.]
         [6. 8.]]

    References:
        Jolliffe (2002), "Principal Component Analysis", section 3.1, property G3.
    """
    k = state.components.shape[0]
    scores = _rows("pca.inverse_transform", state, scores, "scores", k)
    return _inverse_transform(state, scores)


@jax.jit
def _score_samples(state: State, x: jax.Array) -> jax.Array:
    k, n = state.components.shape
    x = x - state.mean[None, :]
    scores = product(x, state.components.mT)
    noise = state.noise_variance
    variance = jnp.maximum(state.explained_variance, noise)
    # What has no density, a direction without variance, makes the score NaN.
    variance = jnp.where(variance <= _negligible(state) ** 2 * variance[:1], jnp.nan, variance)
    distance = jnp.sum(scores**2 / variance[None, :], axis=1)
    volume = jnp.sum(jnp.log(variance))
    if k < n:
        noise = jnp.where(noise == 0, jnp.nan, noise)
        rest = x - product(scores, state.components)
        distance = distance + jnp.sum(rest**2, axis=1) / noise
        volume = volume + (n - k) * jnp.log(noise)
    return -(distance + volume + n * math.log(2 * math.pi)) / 2


def score_samples(state: State, x: Any) -> jax.Array:
    """Return the log-likelihood of each sample under the probabilistic model.

        log N(x; mean, C),   C = V diag(variance - noise) V^T + noise I

    without C: from the scores and what they leave of x. Differentiable in x and in the state.

    A normal distribution has a density only if all its variances are positive: where the noise
    variance is zero with k < n (samples of rank at most k, or k = m < n) or a component has
    variance zero, the score is NaN.

    Cost: two products of m n k.

    Args:
        state: from `fit` or `update`.
        x: real array (m, n).

    Returns:
        Array (m,), in the dtype of the state.

    Raises:
        TypeError: ``x`` is not an array, or complex.
        ValueError: another number of features; no samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jax.random.normal(jax.random.key(0), (500, 4))
        >>> model = pca.fit(x, 2)
        >>> far = jnp.array([[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
        >>> near, off = pca.score_samples(model, far)
        >>> bool(near > off)
        True

    References:
        Tipping and Bishop (1999), "Probabilistic principal component analysis", J. R. Statist. Soc.
        B 61, eqs. 4 and 8.
    """
    return _score_samples(state, _rows("pca.score_samples", state, x, "x"))


def score(state: State, x: Any) -> jax.Array:
    """Return the mean log-likelihood of samples: the mean of `score_samples`.

    Cost: two products of m n k.

    Args:
        state: from `fit` or `update`.
        x: real array (m, n).

    Returns:
        Number, ().

    Raises:
        TypeError: ``x`` is not an array, or complex.
        ValueError: another number of features; no samples.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsvd.models import pca
        >>> x = jax.random.normal(jax.random.key(0), (500, 4))
        >>> print(jnp.round(pca.score(pca.fit(x, 2), x), 1))
        -5.7

    References:
        Tipping and Bishop (1999), J. R. Statist. Soc. B 61, eq. 4.
    """
    return jnp.mean(_score_samples(state, _rows("pca.score", state, x, "x")))
