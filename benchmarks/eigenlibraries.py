"""The three libraries on the Hermitian half: derivatives of a loss, paired with directions.

As `libraries`: jax.numpy and torch get the loss as one writes it over eigenpairs, jaxsvd goes
through the functions that the loss names.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

from .eigenproblems import LOSSES, MAPS, PAIRS, RAW, SUMS, Problem, value
from .libraries import Outcome, chosen, derivatives_of, outcomes_of, torch_outcomes
from .losses import Loss, adjoint, form


def _projector(Q):
    return Q @ adjoint(Q)


def _through_eigh(A, weights, choice):
    Q = jaxsvd.eigh(A).eigenvectors
    truncated = jaxsvd.truncated_eigh(A, PAIRS, "LA").eigenvectors
    return {"top": Q[:, -PAIRS:], "bottom": Q[:, :PAIRS], "truncated": truncated}


def _projectors(vectors: Callable) -> Callable:
    """Return (A, weights, choice) -> the loss, from vectors of each subspace."""

    def loss(A, weights, choice):
        found = vectors(A, weights, choice)
        return sum(choice["select"][q] * form(_projector(Q), weights) for q, Q in found.items())

    return loss


def _through_core_eigh(A, weights, choice):
    ends = {"top": "LA", "bottom": "SA", "large": "LM"}
    cores = {q: jaxsvd.core_eigh(A, PAIRS, which) for q, which in ends.items()}
    total = sum(choice["select"][q] * form(_projector(Q), weights) for q, (Q, _) in cores.items())
    Q, C = cores["top"]
    part = form(Q @ (C * choice["factor"]) @ adjoint(Q), weights)
    return total + choice["select"]["part"] * part


def _through_hermitian_map(A, weights, choice):
    f = chosen(MAPS, choice["index"], choice["exponent"])
    return form(jaxsvd.hermitian_map(f, A) * choice["factor"], weights)


def _through_hermitian_sum(A, weights, choice):
    return jaxsvd.hermitian_sum(chosen(SUMS, choice["index"], choice["exponent"]), A)


def _through_linalg(A, weights, choice):
    select, B = choice["select"], choice["other"]
    # In units: (unit w)^(1/2) is of size one times unit^(1/2).
    root = jaxsvd.linalg.sqrtm(A) / choice["root"]
    whitening = jaxsvd.linalg.whitening(A) * choice["root"]
    total = select["root"] * form(root, weights) + select["whitening"] * form(whitening, weights)
    return total + select["distance"] * jaxsvd.linalg.log_euclidean_distance(A, B)


THROUGH = {
    RAW: _projectors(_through_eigh),
    "core_eigh": _through_core_eigh,
    "hermitian_map": _through_hermitian_map,
    "hermitian_sum": _through_hermitian_sum,
    "linalg": _through_linalg,
}


@functools.cache
def compiled(through: str, order: int) -> Callable:
    """Return (A, v, weights, choice) -> derivatives, for all losses through one function."""
    # Most of the time of these programs goes into LLVM's optimisation.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(derivatives_of(THROUGH[through], order), compiler_options=options)


def arguments(problem: Problem, loss: Loss) -> tuple[Any, dict[str, Any]]:
    """Return what selects the loss within its function: (weights, choice)."""
    real = problem.a.real.dtype.type
    scalars = SUMS if loss.quantity == "sum" else MAPS
    name = loss.scalar if loss.scalar in scalars else next(iter(scalars))
    degree = 1 if loss.quantity == "part" else scalars[name].degree
    quantities = dict.fromkeys(each.quantity for each in LOSSES)
    choice = {
        "select": {q: real(q == loss.quantity) for q in quantities},
        "index": np.int32(list(scalars).index(name)),
        "exponent": np.int32(problem.exponent),
        "factor": problem.a.dtype.type(1.0 if scalars is SUMS else problem.unit**-degree),
        "root": problem.a.dtype.type(problem.unit**0.5),
        "other": problem.other,
    }
    return problem.weights, choice


def with_jaxsvd(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the derivatives of this order, by mode, along or paired with the directions."""
    return outcomes_of(compiled(loss.through, order), order, problem, *arguments(problem, loss))


def with_jax_numpy(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the same over jnp.linalg.eigh, uncompiled: each loss would be a program of its own."""

    def f(A):
        return value(jnp, loss, problem, jnp.linalg.eigh, (A, *problem.weights, problem.other))

    return outcomes_of(derivatives_of(f, order), order, problem)


def with_torch(problem: Problem, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return the same over torch.linalg.eigh; a mode that raises has its exception for outcome."""
    import torch

    constants = [torch.from_numpy(x) for x in (*problem.weights, problem.other)]

    def f(A):
        return value(torch, loss, problem, torch.linalg.eigh, (A, *constants))

    return torch_outcomes(f, problem, order)


LIBRARIES: dict[str, Callable[[Problem, Loss, int], dict[str, Outcome]]] = {
    "jaxsvd": with_jaxsvd,
    "jnp.linalg": with_jax_numpy,
    "torch.linalg": with_torch,
}
