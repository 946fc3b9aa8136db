"""`diagnose`: which function a loss of singular vectors should be written with, by measurement."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _checks, _tolerances
from ._differences import correct_digits, extrapolated_difference
from ._types import SVDResult
from .algorithms.router import SCOPE
from .primitives.batching import vmapped
from .primitives.gauge import watch
from .primitives.probe import observing
from .rules.gauge import skew_parts

ADVICE = {
    "svd": "nothing: the gradient is right as it stands.",
    "phase": "nothing: the gradient is that of the function with the phase convention of svd; it "
    "jumps where the largest entry of a singular vector changes place.",
    "basis": "no derivative exists here: the loss tells apart vectors that the matrix does not "
    "determine. Use the whole subspace: core_svd(A, k), or a projector U U^H.",
    "jnp": "jaxsvd.svd in place of jnp.linalg.svd, then diagnose again.",
    "sum": "spectral_sum(f, A) in place of jnp.sum(f(S)).",
    "map": "spectral_map(f, A) in place of U f(S) Vh, or low_rank(A, k) in place of a truncation.",
    "core": "core_svd(A, k) with a loss of the whole block, in place of columns of svd.",
    "unknown": "another formula: the loss loses digits outside of any SVD seen here.",
}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; printed, a short report.

    Attributes:
        shape: shape of the matrix.
        dtype: dtype of the matrix.
        singular_values: of the matrix, computed in float64.
        ties: pairs (i, j) of neighbouring singular values > 0 that count as tied in this dtype.
        zeros: how many singular values count as zero in this dtype.
        calls: how often the loss calls `jaxsvd.svd`.
        raw_calls: how often it calls another SVD or eigh of JAX, whose gradients are not ours.
        gaps: (i, j, gap / s_1, share of the gradient) of the gaps that the gradient divides by.
        depends_on_phase: the value changes with the phases (signs) of the singular vectors.
        depends_on_basis: the value changes with the basis of a tied or null subspace.
        gradient_digits: correct digits of the gradient, measured; None if it could not be judged.
        hessian_digits: the same of a Hessian-vector product.
        full_digits: digits that the dtype holds.
        advice: what to write instead: a key of `ADVICE`.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    singular_values: np.ndarray
    ties: tuple[tuple[int, int], ...]
    zeros: int
    calls: int
    raw_calls: int
    gaps: tuple[tuple[int, int, float, float], ...]
    depends_on_phase: bool
    depends_on_basis: bool
    gradient_digits: float | None
    hessian_digits: float | None
    full_digits: float
    advice: str

    def __str__(self) -> str:
        s = self.singular_values

        def digits(value):
            if value is None:
                return "not measurable: finite differences of the loss do not settle"
            return f"{value:.1f} digits of {self.full_digits:.1f}, against finite differences"

        ties = ", ".join(f"s[{i}] = s[{j}] = {s[i]:.4g}" for i, j in self.ties) or "none"
        gaps = "; ".join(
            f"s[{i}] - s[{j}] = {gap:.1e} s[0] ({share:.0%} of the gradient)"
            for i, j, gap, share in self.gaps
        )
        depends = [
            text
            for found, text in (
                (self.depends_on_phase, "signs or phases of the vectors"),
                (self.depends_on_basis, "the basis of a tied or null subspace"),
            )
            if found
        ]
        other = f", {self.raw_calls} of another SVD or eigh" if self.raw_calls else ""
        lines = (
            ("matrix", f"{self.shape[0]} x {self.shape[1]} {self.dtype}, s[0] = {s[0]:.4g}"),
            ("ties", ties),
            ("zeros", f"{self.zeros} of {s.size} singular values"),
            ("calls", f"{self.calls} of jaxsvd.svd{other}"),
            ("divides by", gaps or "no gap"),
            ("depends on", " and ".join(depends) or "neither phase nor basis"),
            ("gradient", digits(self.gradient_digits)),
            ("hessian", digits(self.hessian_digits)),
            ("write", ADVICE[self.advice]),
        )
        return "\n".join(f"{name:>10}: {text}" for name, text in lines)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield every equation of a jaxpr and of those nested in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _foreign_decompositions(loss: Callable, A: jax.Array) -> int:
    found = _equations(jax.make_jaxpr(loss)(A).jaxpr)
    names = [e for e in found if e.primitive.name in ("svd", "eigh")]
    return sum(SCOPE not in str(e.source_info.name_stack) for e in names)


Records = list[tuple[SVDResult, SVDResult]]


def _record(loss: Callable, A: jax.Array) -> tuple[jax.Array, Records]:
    """Return the gradient, and what each call of `svd` under it returned with its cotangents."""
    records: Records = []

    def keep(*leaves):
        arrays: list[Any] = [np.asarray(x) for x in leaves]
        records.append((SVDResult(*arrays[:3]), SVDResult(*arrays[3:])))

    def look(result, cotangent):
        jax.debug.callback(keep, *result, *cotangent)
        return cotangent

    def observer(result):
        return vmapped(lambda x: watch(x, look), result.S.ndim - 1)(result)

    with observing(observer):
        gradient = jax.block_until_ready(jax.jit(jax.grad(loss))(A))
        jax.effects_barrier()
    return gradient, records


def _turned(S: jax.Array, columns: int, key: jax.Array, dtype: Any, zero: float, tie: float):
    """Return a random unitary matrix that mixes tied columns only, and null columns only."""
    S = jnp.concatenate([S, jnp.zeros(columns - S.shape[0], S.dtype)])
    tied = jnp.abs(S[:, None] - S[None, :]) <= tie * S[0]
    null = S <= zero * S[0]
    mixed = tied & ~(null[:, None] ^ null[None, :]) & ~jnp.eye(columns, dtype=bool)
    X = jax.random.normal(key, (columns, columns), dtype)
    return jax.scipy.linalg.expm(jnp.where(mixed, X - jnp.conj(X.T), 0)), null


def _with_other_vectors(loss: Callable, A: jax.Array, kind: str) -> np.ndarray:
    """Return the loss for three choices of other phases, or of another basis where it is free."""

    def one(result: SVDResult, seed: jax.Array) -> SVDResult:
        U, S, Vh = result
        key, key_null = jax.random.split(jax.random.key(seed))
        if kind == "phase":
            k = min(U.shape[1], Vh.shape[0])
            # Seeds 0, 1, 2: minus everywhere, on every second column, on every second pair.
            phase = (1 - 2 * (((jnp.arange(k) >> seed) + 1) % 2)).astype(U.dtype)
            if jnp.iscomplexobj(U):
                phase = phase * jnp.exp(1j * jax.random.normal(key, (k,), S.dtype)).astype(U.dtype)
            left = jnp.ones(U.shape[1], U.dtype).at[:k].set(phase)
            right = jnp.ones(Vh.shape[0], U.dtype).at[:k].set(jnp.conj(phase))
            return SVDResult(U * left[None, :], S, right[:, None] * Vh)
        zero = _tolerances.rank_tol(S.dtype, U.shape[0], Vh.shape[1])
        tie = _tolerances.degeneracy_tol(S.dtype)
        columns = max(U.shape[1], Vh.shape[0])
        Q, null = _turned(S, columns, key, U.dtype, zero, tie)
        Q_null, _ = _turned(S, columns, key_null, U.dtype, zero, tie)
        Q_V = jnp.where(null[:, None] & null[None, :], Q_null, Q)
        left, right = Q[: U.shape[1], : U.shape[1]], Q_V[: Vh.shape[0], : Vh.shape[0]]
        return SVDResult(jnp.matmul(U, left), S, jnp.matmul(jnp.conj(right.T), Vh))

    def with_seed(A, seed):
        def observer(result):
            return vmapped(functools.partial(one, seed=seed), result.S.ndim - 1)(result)

        with observing(observer):
            return loss(A)

    compiled = jax.jit(with_seed)
    return np.array([compiled(A, jnp.asarray(seed)) for seed in range(3)])


def _measure(loss: Callable, A: np.ndarray, g: np.ndarray, full: float, seed: int):
    """Return the digits of the gradient g and of a Hessian-vector product in the dtype of A."""
    wide = np.result_type(A.dtype, np.float64)
    rng = np.random.default_rng(seed)
    size = np.abs(A).max() or 1.0
    D = rng.standard_normal((3, *A.shape))
    if np.iscomplexobj(A):
        D = D + 1j * rng.standard_normal(D.shape)

    def gradient(X):
        return jax.grad(loss)(X)

    def along(g, d):  # JAX's gradient of a real loss: dL = Re sum(g dA)
        return np.sum(np.asarray(g, wide) * d).real

    def hessian(X, d):
        return jax.jvp(jax.grad(loss), (X,), (d,))[1]

    Hd = np.asarray(jax.jit(hessian)(jnp.asarray(A), jnp.asarray(D[0].astype(A.dtype) * size)))
    with jax.enable_x64(True):
        value64, gradient64 = jax.jit(loss), jax.jit(gradient)
        first = [
            extrapolated_difference(
                lambda t, d=d: np.asarray(value64(jnp.asarray(A + t * size * d))), 0.05
            )
            for d in D.astype(wide)
        ]
        d = D[0].astype(wide)
        second = extrapolated_difference(
            lambda t: np.asarray(gradient64(jnp.asarray(A + t * size * d))), 0.05
        )
    computed = np.array([along(g, size * d) for d in D])
    exact = np.array([value for value, _ in first])
    return (
        correct_digits(computed, exact, max(error for _, error in first), full),
        correct_digits(Hd.astype(wide), *second, full),
    )


def _gaps(records, S: np.ndarray, gradient_norm: float):
    """Return the gaps that the recorded gradients divide by, the largest contribution first."""
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for result, cotangent in records:
        s = result.S
        a, b = (np.asarray(x)[: s.size, : s.size] for x in skew_parts(result, cotangent))
        norm = np.linalg.norm(cotangent.U) + np.linalg.norm(cotangent.Vh)
        for i, j in itertools.combinations(range(s.size), 2):
            part, gap = abs(a[i, j] + b[i, j]), abs(s[i] - s[j])
            if gap > 0 and part > _tolerances.gauge_tol(s.dtype) * norm:
                share = 2**0.5 * part / gap / (S[0] / s[0] * gradient_norm or 1)
                if share > found.get((i, j), (0, 0))[1]:
                    found[i, j] = (float(gap / s[0]), float(share))
    rows = [(i, j, gap, share) for (i, j), (gap, share) in found.items()]
    return tuple(sorted(rows, key=lambda row: -row[3])[:3])


def diagnose(loss: Callable[[jax.Array], jax.Array], A: Any, *, seed: int = 0) -> Diagnosis:
    """Report how far the gradient of a loss at a matrix can be trusted, and what to write instead.

    Everything is measured on the loss itself: its gradient and a Hessian-vector product against
    extrapolated finite differences computed in float64; its value with other signs and phases and
    with another basis of tied and null subspaces; the gaps 1/(s_j - s_i) that weigh in the
    gradient, with the share each contributes.

    Cost: about a hundred evaluations of the loss and of its gradient, and their compilation: a
    tool for the desk, not for a training loop.

    Args:
        loss: function of one matrix that returns a real scalar. It may call `jaxsvd.svd`, another
            SVD, or anything.
        A: the matrix, (m, n), a concrete array.
        seed: of the random directions of the finite differences.

    Returns:
        A Diagnosis; ``print`` it for the report.

    Raises:
        TypeError: ``loss`` is not a function, ``A`` is not a concrete array.
        ValueError: ``A`` is not a finite matrix with entries, or the loss is not a real scalar.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> def loss(A):  # |A^(1/2)|^2 of sorts, through raw triplets at a tie
        ...     U, S, Vh = jaxsvd.svd(A, full_matrices=False)
        ...     return jnp.sum((U * jnp.sqrt(S)[None, :] @ Vh)[0] * jnp.arange(1.0, 4.0))
        >>> report = jaxsvd.diagnose(loss, jnp.diag(jnp.array([2.0, 2.0, 1.0])))
        >>> report.ties, report.depends_on_basis, report.gradient_digits < 2, report.advice
        (((0, 1),), False, True, 'map')

    References:
        Ridders (1982), Adv. Eng. Software 4 (the differences); `jaxsvd.rules.gauge`.
    """
    name = "diagnose"
    _checks.function(name, "loss", loss)
    if isinstance(A, Tracer):
        raise TypeError(f"{name}: `A` must be a concrete array, got a traced value")
    A = _checks.matrix(name, A, "A")
    if A.ndim != 2 or A.size == 0 or not bool(jnp.isfinite(A).all()):
        raise ValueError(
            f"{name}: `A` must be one finite matrix (m, n) with entries, got {_checks.describe(A)}"
        )
    value = jax.jit(loss)(A)
    if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name}: `loss` must return a real scalar, got {_checks.describe(value)}")
    dtype = jnp.finfo(A.dtype).dtype
    given = np.asarray(A)
    wide = np.asarray(given, np.result_type(given.dtype, np.float64))
    S = np.linalg.svd(wide, compute_uv=False)
    tie = _tolerances.degeneracy_tol(dtype) * S[0]
    zero = _tolerances.rank_tol(dtype, *A.shape) * S[0]
    ties = [(i, i + 1) for i in range(S.size - 1) if S[i] - S[i + 1] <= tie and S[i + 1] > zero]
    full = -np.log10(_tolerances.eps(dtype))

    given_gradient, records = _record(loss, A)
    gradient = np.asarray(given_gradient, wide.dtype)
    base, scale = float(value), float(np.abs(gradient * wide).sum())
    threshold = _tolerances.gauge_tol(dtype) * (abs(base) + (scale if np.isfinite(scale) else 0))

    def changes(kind: str) -> bool:
        if not records:
            return False
        return bool((np.abs(_with_other_vectors(loss, A, kind) - base) > threshold).any())

    phase, basis = changes("phase"), changes("basis")
    gradient_digits, hessian_digits = _measure(loss, given, gradient, full, seed)
    raw_calls = _foreign_decompositions(loss, A)
    uses = [any(np.abs(ct[i]).max(initial=0) > 0 for _, ct in records) for i in range(3)]
    # Half the digits lost at a small gap are worth another formula. A loss of single vectors has
    # none: there only a derivative that is wrong, not one that is ill-conditioned, counts.
    enough = full / 4 if phase else full / 2
    if basis:
        advice = "basis"
    elif all(d is not None and d > enough for d in (gradient_digits, hessian_digits)):
        advice = "phase" if phase else "svd"
    elif raw_calls:
        advice = "jnp"
    elif not records:
        advice = "unknown"
    elif uses[0] or uses[2]:
        advice = "map" if uses[0] and uses[2] else "core"
    else:
        advice = "sum"
    return Diagnosis(
        shape=(A.shape[0], A.shape[1]),
        dtype=given.dtype,
        singular_values=S,
        ties=tuple(ties),
        zeros=int(np.sum(zero >= S)),
        calls=len(records),
        raw_calls=raw_calls,
        gaps=_gaps(records, S, float(np.linalg.norm(gradient))),
        depends_on_phase=phase,
        depends_on_basis=basis,
        gradient_digits=gradient_digits,
        hessian_digits=hessian_digits,
        full_digits=float(full),
        advice=advice,
    )
