"""Gauge-free losses, each with the function of the library that it goes through.

A loss does not depend on the phases of singular vectors nor on the basis of a tied subspace, so it
has a derivative wherever `defined` says so, and every library is asked for the same number. With a
quantity Z (a projector, a matrix function in units) it is

    Re <G, Z> + 1/2 sum W |Z|^2        or, of the singular values alone,        sum f(s)

with fixed weights G, W. Everything here is plain array code, `xp` being numpy, jax.numpy or torch:
`value` is the loss as one writes it over (U, S, Vh).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from .problems import CUT, NULL, Problem

CUT_RANK = 2  # columns before the cut


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A function of singular values: f(xp, s, unit), and the power of the unit in its result."""

    f: Callable[[Any, Any, Any], Any]
    degree: int


def _step(at: float) -> Callable:
    def f(xp, s, unit):
        return xp.where(s > at * unit, xp.ones_like(s), xp.zeros_like(s))

    return f


def _reciprocal(xp, s, unit):
    # In units, since the slope of 1/s itself, 1/s^2, is no number at s = 1e160.
    t = s / unit
    kept = t > NULL
    return xp.where(kept, 1 / xp.where(kept, t, xp.ones_like(t)), xp.zeros_like(t)) / unit


# For U f(S) V^H. All but `exp` have a smooth odd continuation, so they are smooth at s = 0 too.
MAPS = {
    "s": Scalar(lambda xp, s, unit: s, 1),
    "s^3": Scalar(lambda xp, s, unit: s * (s / unit) ** 2, 1),
    "s/(1+s^2)": Scalar(lambda xp, s, unit: s / (1 + (s / unit) ** 2), 1),
    "s exp(-s^2)": Scalar(lambda xp, s, unit: s * xp.exp(-((s / unit) ** 2)), 1),
    "s exp(-s)": Scalar(lambda xp, s, unit: s * xp.exp(-s / unit), 1),
    "one": Scalar(lambda xp, s, unit: xp.ones_like(s), 0),
    "step at the cut": Scalar(_step(CUT), 0),
    "step at zero": Scalar(_step(NULL), 0),
    "1/s": Scalar(_reciprocal, -1),
}

# For sum f(s). Two of them without a unit: at extreme scales the sum itself is no number, and what
# is left of its derivatives must be right all the same.
SUMS = {
    "s^2": Scalar(lambda xp, s, unit: s * s, 2),
    "s^4": Scalar(lambda xp, s, unit: (s * s) * (s * s), 4),
    "s": Scalar(lambda xp, s, unit: s, 1),
    "log(1+s^2)": Scalar(lambda xp, s, unit: xp.log1p((s / unit) ** 2), 0),
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """One gauge-free loss.

    Attributes:
        name: what stands in the table.
        through: the function of the library that it goes through.
        quantity: "left", "right", "both" (projectors on the two leading subspaces), "null", "low
            rank", "map" (U f(S) V^H), "map left", "map null" (projectors made of it), "sum".
        scalar: name of f in `MAPS` or `SUMS`.
        orders: of derivative that the function is meant for.
        needs: what the matrix must have for the loss to be differentiable; see `defined`.
        needs_second: what it must have besides for the second derivative.
    """

    name: str
    through: str
    quantity: str
    scalar: str | None = None
    orders: tuple[int, ...] = (1, 2)
    needs: tuple[str, ...] = ()
    needs_second: tuple[str, ...] = ()


CUT_GAP, NULL_SPACE, FULL_RANK = ("has_cut",), ("has_null_space",), ("full_rank",)

LOSSES = (
    Loss("left subspace", "svd", "left", orders=(1,), needs=CUT_GAP),
    Loss("right subspace", "svd", "right", orders=(1,), needs=CUT_GAP),
    Loss("null space", "svd(full_matrices=True)", "null", orders=(1,), needs=NULL_SPACE),
    Loss("both subspaces", "core_svd", "both", needs=CUT_GAP),
    Loss("low rank", "low_rank", "low rank", needs=CUT_GAP),
    Loss("U S Vh", "spectral_map", "map", "s"),
    Loss("U S^3 Vh", "spectral_map", "map", "s^3"),
    Loss("U S/(1+S^2) Vh", "spectral_map", "map", "s/(1+s^2)"),
    Loss("U S exp(-S^2) Vh", "spectral_map", "map", "s exp(-s^2)"),
    Loss("U S exp(-S) Vh", "spectral_map", "map", "s exp(-s)", needs_second=FULL_RANK),
    Loss("polar factor", "spectral_map", "map", "one", needs=FULL_RANK),
    Loss("polar factor of the range", "spectral_map", "map", "step at zero"),
    Loss("pseudoinverse", "spectral_map", "map", "1/s"),
    Loss("left subspace by a step", "spectral_map", "map left", "step at the cut", needs=CUT_GAP),
    Loss("null space by a step", "spectral_map", "map null", "step at zero", needs=NULL_SPACE),
    Loss("sum s^2", "spectral_sum", "sum", "s^2"),
    Loss("sum s^4", "spectral_sum", "sum", "s^4"),
    Loss("sum s", "spectral_sum", "sum", "s", needs=FULL_RANK),
    Loss("sum log(1+s^2)", "spectral_sum", "sum", "log(1+s^2)"),
)

BY_NAME = {loss.name: loss for loss in LOSSES}


def defined(problem: Problem, loss: Loss, order: int) -> bool:
    """Say whether the loss has a derivative of this order at the matrix; else there is no cell.

    A subspace needs a gap where it is cut off, a null space a value that is not zero and one that
    is (or a longer side), and the polar factor and the nuclear norm have a kink at a zero singular
    value; s exp(-s) has there a first derivative and no second.
    """
    if order not in loss.orders:
        return False
    needs = loss.needs + (loss.needs_second if order == 2 else ())
    return all(getattr(problem, need) for need in needs)


def form(Z: Any, weights: tuple[Any, Any]) -> Any:
    """Return Re <G, Z> + 1/2 sum W |Z|^2."""
    G, W = weights
    return (G.conj() * Z).real.sum() + (W * (Z * Z.conj()).real).sum() / 2


def adjoint(X: Any) -> Any:
    """Return X^H, for arrays of every library."""
    return X.conj().swapaxes(-1, -2)


def weigh_diagonal(X: Any, d: Any) -> Any:
    """Return X diag(d), d real; torch writes a cast as .to, the others as .astype."""
    return X * (d.to(X.dtype) if hasattr(d, "to") else d.astype(X.dtype))[None, :]


def value(xp: Any, loss: Loss, problem: Problem, svd: Callable, weights: dict[str, Any]) -> Any:
    """Return the loss written over triplets; svd(full_matrices) returns (U, S, Vh)."""
    m, n = problem.a.shape
    unit = problem.unit
    if loss.quantity == "null":
        U, S, Vh = svd(m != n)
        N = U[:, problem.rank :] if m >= n else adjoint(Vh[problem.rank :])
        return form(N @ adjoint(N), weights["null"])
    U, S, Vh = svd(False)
    if loss.quantity == "sum":
        return SUMS[loss.scalar].f(xp, S, unit).sum()
    U2, V2 = U[:, :CUT_RANK], adjoint(Vh[:CUT_RANK])
    if loss.quantity == "left":
        return form(U2 @ adjoint(U2), weights["left"])
    if loss.quantity == "right":
        return form(V2 @ adjoint(V2), weights["right"])
    if loss.quantity == "both":
        left = form(U2 @ adjoint(U2), weights["left"])
        return left + form(V2 @ adjoint(V2), weights["right"])
    if loss.quantity == "low rank":
        Z = weigh_diagonal(U2, S[:CUT_RANK] / unit) @ adjoint(V2)
        return form(Z, weights["product"])
    scalar = MAPS[loss.scalar]
    Z = weigh_diagonal(U, scalar.f(xp, S, unit) * unit**-scalar.degree) @ Vh
    if loss.quantity == "map":
        return form(Z, weights["product"])
    if loss.quantity == "map left":
        return form(Z @ adjoint(Z), weights["left"])
    P = Z @ adjoint(Z) if m >= n else adjoint(Z) @ Z
    return form(xp.eye(max(m, n), dtype=P.dtype) - P, weights["null"])
