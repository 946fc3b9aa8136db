"""Hessians at tied matrices, against closed forms that hold no singular value.

U S^3 V^H = A A^H A and U S/(1+S^2) V^H = (I + A A^H)^-1 A are differentiated as such, which shares
nothing with the rules; 2 I is the Hessian of sum s^2 everywhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from benchmarks import libraries
from benchmarks.libraries import MODES, chosen, compiled, derivatives_of
from benchmarks.losses import BY_NAME as BY_LOSS
from benchmarks.losses import MAPS, adjoint, form
from benchmarks.problems import BY_NAME

ODD = {name: MAPS[name] for name in ("s^3", "s/(1+s^2)")}


def cube(A):
    return A @ adjoint(A) @ A


def rational(A):
    return jnp.linalg.solve(jnp.eye(A.shape[0], dtype=A.dtype) + A @ adjoint(A), A)


CLOSED = {"s^3": cube, "s/(1+s^2)": rational}


def by_core_map(A, index):
    U, C, Vh = jaxsvd.core_svd(A)
    return U @ jaxsvd.core_map(chosen(ODD, index, jnp.int32(0)), C) @ Vh


def by_core_svd(A, index):
    U, C, Vh = jaxsvd.core_svd(A)
    return U @ jnp.where(index == 0, cube(C), rational(C)) @ Vh


@functools.cache
def through_core(route):
    """(A, v, weights, index) -> the Hessian times v in the three orders, of form(route(A))."""
    return jax.jit(derivatives_of(lambda A, w, index: form(route(A, index), w), 2))


@functools.cache
def closed_form(name: str):
    def product(A, v, weights):
        return jax.jvp(jax.grad(lambda A: form(CLOSED[name](A), weights)), (A,), (v,))[1]

    return jax.jit(product)


def assert_closed_form(products, name: str, problem, tolerance: float = 1e-10) -> None:
    wanted = closed_form(name)(problem.a, problem.directions[0], problem.weights["product"])
    assert set(products) == set(MODES[2])
    for mode, got in products.items():
        error = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
        assert error < tolerance, (mode, error)


TIED = [
    "exact ties",
    "exact ties, wide",
    "exact ties, complex tall",
    "identity",
    "ties split by rounding",
    "gaps of 1e-13",
]


@pytest.mark.parametrize("loss", [BY_LOSS["U S^3 Vh"], BY_LOSS["U S/(1+S^2) Vh"]])
@pytest.mark.parametrize(
    "name",
    [
        *TIED,
        "exact ties, tall",
        "exact ties, complex",
        "tall orthonormal",
        "rank-deficient, tied",
        "rank-deficient, complex",
    ],
)
def test_products_with_the_hessian_through_spectral_map(name, loss):
    problem = BY_NAME[name]
    # The program of the derivative table: nothing is compiled twice.
    program, arguments = compiled("spectral_map", 2), libraries.arguments(problem, loss)
    products = program(problem.a, problem.directions[0], *arguments)
    assert_closed_form(products, loss.scalar, problem)


@pytest.mark.parametrize("function", list(ODD))
@pytest.mark.parametrize("route", [by_core_map, by_core_svd])
@pytest.mark.parametrize("name", TIED)
def test_products_with_the_hessian_through_core_svd(name, route, function):
    problem = BY_NAME[name]
    index = jnp.int32(list(ODD).index(function))
    arguments = (problem.a, problem.directions[0], problem.weights["product"], index)
    assert_closed_form(through_core(route)(*arguments), function, problem)


def core_trace(A):
    return jnp.trace(jaxsvd.core_map(jnp.square, jaxsvd.core_svd(A).C))


def core_energy(A):
    return jnp.sum(jaxsvd.core_svd(A).C ** 2)


def map_energy(A):
    return jnp.sum(jaxsvd.spectral_map(lambda s: s, A) ** 2)


def sum_of_squares(A):
    return jaxsvd.spectral_sum(jnp.square, A)


@pytest.mark.parametrize("loss", [sum_of_squares, map_energy, core_energy, core_trace])
def test_the_hessian_of_the_sum_of_squares_at_the_identity_is_twice_the_identity(loss):
    H = jax.jit(jax.hessian(loss))(jnp.eye(3))
    np.testing.assert_allclose(H.reshape(9, 9), 2 * np.eye(9), rtol=0, atol=1e-12)


@pytest.mark.x32
def test_the_same_in_single_precision():
    H = jax.jit(jax.hessian(sum_of_squares))(jnp.eye(3, dtype=jnp.float32))
    np.testing.assert_allclose(H.reshape(9, 9), 2 * np.eye(9), rtol=0, atol=1e-5)
