"""The three libraries under one call: a derivative of a loss at a matrix, paired with directions.

jax.numpy and torch get the loss as one writes it over (U, S, Vh), `losses.value`. For jaxsvd it
goes through the function that the loss names; the weights and the choice of f are arguments of one
compiled program for each function, shape and kind of derivative, since compiling is all the time
this takes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

from .losses import CUT_RANK, MAPS, SUMS, Loss, Scalar, adjoint, form, value
from .problems import Problem

MODES = {
    1: ("jvp", "vjp"),
    2: ("forward-reverse", "reverse-forward", "reverse-reverse"),
}

Outcome = np.ndarray | Exception


def paired(gradient: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return Re sum(gradient * E_j) for each direction, in double precision: JAX's convention."""
    work = np.result_type(gradient.dtype, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        products = gradient.astype(work) * directions.astype(work)
        return products.real.sum(axis=(-2, -1))


# ---------------------------------------------------------------------------------------- jax


def _pair(g: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.sum(jnp.real(g * v))


def derivatives_of(loss: Callable, order: int) -> Callable:
    """Return (A, v, *rest) -> all derivatives of loss(A, *rest) of one order, by mode.

    jvp: the slope along v. vjp: the gradient. Second order: the Hessian times v, in the three
    orders of differentiation, outer one first. One program for all: they share most of their work,
    and compiling it is most of the time.
    """

    def derivatives(A, v, *rest):
        def f(A):
            return loss(A, *rest)

        def slope(A):
            return jax.jvp(f, (A,), (v,))[1]

        gradient = jax.grad(f)
        if order == 1:
            return {"jvp": slope(A), "vjp": gradient(A)}
        return {
            "forward-reverse": jax.jvp(gradient, (A,), (v,))[1],
            "reverse-forward": jax.grad(slope)(A),
            "reverse-reverse": jax.grad(lambda A: _pair(gradient(A), v))(A),
        }

    return derivatives


def outcomes_of(derivatives: Callable, order: int, problem: Any, *rest: Any) -> dict[str, Outcome]:
    """Return each derivative along, or paired with, the problem's directions."""
    E = problem.directions
    steps = problem.a.real.dtype.type(problem.unit) * (E if order == 1 else E[:1])
    results = [derivatives(problem.a, step, *rest) for step in steps]
    outcomes = {mode: paired(np.asarray(x), E) for mode, x in results[0].items() if mode != "jvp"}
    if order == 1:
        outcomes["jvp"] = np.array([float(result["jvp"]) for result in results])
    return outcomes


# ------------------------------------------------------------------------------------- jaxsvd


def chosen(scalars: dict[str, Scalar], index: jax.Array, exponent: jax.Array) -> Callable:
    """Return the index-th function for a unit of 2**exponent; both may be traced."""

    def f(s):
        unit = jnp.ldexp(jnp.ones((), s.dtype), exponent)
        y = jnp.zeros_like(s)
        for i, scalar in enumerate(scalars.values()):
            y = jnp.where(index == i, scalar.f(jnp, s, unit), y)
        return y

    return f


def _through_svd(A, weights, choice):
    U, _, Vh = jaxsvd.svd(A, full_matrices=False)
    U2, V2 = U[:, :CUT_RANK], adjoint(Vh[:CUT_RANK])
    left, right = form(U2 @ adjoint(U2), weights["left"]), form(V2 @ adjoint(V2), weights["right"])
    return left + right


def _through_svd_full(A, weights, choice):
    U, _, Vh = jaxsvd.svd(A, full_matrices=True)
    N = U if A.shape[0] >= A.shape[1] else adjoint(Vh)
    null = jnp.arange(N.shape[1], dtype=jnp.int32) >= choice["rank"]
    return form((N * null[None, :].astype(N.dtype)) @ adjoint(N), weights["null"])


def _through_core_svd(A, weights, choice):
    U, _, Vh = jaxsvd.core_svd(A, CUT_RANK)
    left = form(U @ adjoint(U), weights["left"])
    return left + form(adjoint(Vh) @ Vh, weights["right"])


def _through_low_rank(A, weights, choice):
    return form(jaxsvd.low_rank(A, CUT_RANK) * choice["factor"], weights["product"])


def _through_spectral_map(A, weights, choice):
    f = chosen(MAPS, choice["index"], choice["exponent"])
    Z = jaxsvd.spectral_map(f, A) * choice["factor"]
    P = Z @ adjoint(Z)
    R = P if A.shape[0] >= A.shape[1] else adjoint(Z) @ Z
    null = form(jnp.eye(max(A.shape), dtype=A.dtype) - R, weights["null"])
    return form(Z, weights["product"]) + form(P, weights["left"]) + null


def _through_spectral_sum(A, weights, choice):
    return jaxsvd.spectral_sum(chosen(SUMS, choice["index"], choice["exponent"]), A)


THROUGH = {
    "svd": _through_svd,
    "svd(full_matrices=True)": _through_svd_full,
    "core_svd": _through_core_svd,
    "low_rank": _through_low_rank,
    "spectral_map": _through_spectral_map,
    "spectral_sum": _through_spectral_sum,
}

WEIGHED = {
    "left": ("left",),
    "right": ("right",),
    "both": ("left", "right"),
    "null": ("null",),
    "low rank": ("product",),
    "map": ("product",),
    "map left": ("left",),
    "map null": ("null",),
    "sum": (),
}


@functools.cache
def compiled(through: str, order: int) -> Callable:
    """Return (A, v, weights, choice) -> derivatives, for all losses through one function."""
    return jax.jit(derivatives_of(THROUGH[through], order))


def arguments(problem: Problem, loss: Loss) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what selects the loss within its function: (weights, choice)."""
    weights = {  # the quantities that the loss does not weigh get zeros
        name: pair if name in WEIGHED[loss.quantity] else tuple(np.zeros_like(x) for x in pair)
        for name, pair in problem.weights.items()
    }
    scalars = SUMS if loss.quantity == "sum" else MAPS
    name = "s" if loss.scalar is None else loss.scalar
    factor = problem.unit ** -scalars[name].degree if scalars is MAPS else 1.0
    choice = {
        "index": np.int32(list(scalars).index(name)),
        "exponent": np.int32(problem.exponent),
        "rank": np.int32(problem.rank),
        "factor": problem.a.dtype.type(factor),
    }
    return weights, choice


def with_jaxsvd(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the derivatives of this order, by mode, along or paired with the directions."""
    return outcomes_of(compiled(loss.through, order), order, problem, *arguments(problem, loss))


# --------------------------------------------------------------------------- jax.numpy, torch


def with_jax_numpy(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the same over jnp.linalg.svd, uncompiled: each loss would be a program of its own."""

    def f(A):
        def svd(full_matrices):
            return jnp.linalg.svd(A, full_matrices=full_matrices)

        return value(jnp, loss, problem, svd, problem.weights)

    return outcomes_of(derivatives_of(f, order), order, problem)


def with_torch(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the same over torch.linalg.svd; a mode that raises has its exception for outcome."""
    import torch

    weights = {k: tuple(torch.from_numpy(x) for x in pair) for k, pair in problem.weights.items()}

    def f(A):
        def svd(full_matrices):
            return torch.linalg.svd(A, full_matrices=full_matrices)

        return value(torch, loss, problem, svd, weights)

    return torch_outcomes(f, problem, order)


def torch_outcomes(f: Callable, problem: Any, order: int) -> dict[str, Outcome]:
    """Return the derivatives of a torch function of the matrix, by mode."""
    import torch
    from torch.func import grad, jvp

    A = torch.from_numpy(problem.a)
    E = torch.from_numpy(problem.a.real.dtype.type(problem.unit) * problem.directions)

    def along(f, v, A):
        return jvp(f, (A,), (v,))[1]

    def product(A):  # torch's gradient of a complex argument is the conjugate of JAX's
        return (grad(f)(A).conj() * E[0]).real.sum()

    def paired_gradient(gradient):
        return paired(gradient.conj().resolve_conj().numpy(), problem.directions)

    modes = {
        "jvp": lambda: np.array([along(f, e, A).item() for e in E]),
        "vjp": lambda: paired_gradient(grad(f)(A)),
        "forward-reverse": lambda: paired_gradient(along(grad(f), E[0], A)),
        "reverse-forward": lambda: paired_gradient(grad(functools.partial(along, f, E[0]))(A)),
        "reverse-reverse": lambda: paired_gradient(grad(product)(A)),
    }
    return {mode: _outcome(modes[mode]) for mode in MODES[order]}


def _outcome(compute: Callable[[], np.ndarray]) -> Outcome:
    try:
        return compute()
    except (RuntimeError, NotImplementedError) as error:
        return error


LIBRARIES: dict[str, Callable[[Problem, Loss, int], dict[str, Outcome]]] = {
    "jaxsvd": with_jaxsvd,
    "jnp.linalg": with_jax_numpy,
    "torch.linalg": with_torch,
}
