"""Second derivatives inside loops: JAX evaluates their bodies in part, which no rule may notice.

Each loop runs once over a function of a matrix, so its Hessian is that without the loop, which
other tests hold against closed forms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian
from jax import lax

import jaxsvd

M, N = 5, 4


def hermitian(A):
    return A.T @ A + jnp.eye(N)


def by_svd(A, c):
    U, S, Vh = jaxsvd.svd(A, full_matrices=False)
    return (U[:, :2] * (c * S[None, :2] ** 2)) @ Vh[:2]


def by_truncated_svd(A, c):
    U, S, Vh = jaxsvd.truncated_svd(A, 2)
    return (U * (c * S[None, :] ** 2)) @ Vh


def by_core_svd(A, c):
    U, C, Vh = jaxsvd.core_svd(A, 2)
    return c * U @ jaxsvd.core_map(jnp.sqrt, C) @ Vh


def by_spectral_map(A, c):
    return c * jaxsvd.spectral_map(lambda s: s / (1 + s * s), A)


def by_spectral_sum(A, c):
    return A * jaxsvd.spectral_sum(lambda s: jnp.log(1 + c * s * s), A)


def by_eigh(A, c):
    w, Q = jaxsvd.eigh(hermitian(A))
    return c * A @ ((Q[:, :2] * w[None, :2]) @ Q[:, :2].T)


def by_core_eigh(A, c):
    Q, C = jaxsvd.core_eigh(hermitian(A), 2)
    return c * A @ (Q @ C @ C @ Q.T)


def by_kabsch(A, c):
    return A @ jaxsvd.linalg.kabsch(A, A + c * jnp.sin(3 * A)).R


@jaxsvd.safe
def by_safe(A, c):
    U, S, Vh = jnp.linalg.svd(A, full_matrices=False)
    return c * (U * S[None, :] ** 3) @ Vh


FUNCTIONS = [
    by_svd,
    by_truncated_svd,
    by_core_svd,
    by_spectral_map,
    by_spectral_sum,
    by_eigh,
    by_core_eigh,
    by_kabsch,
    by_safe,
]


def scanned(f):
    return lambda A, c: lax.scan(lambda X, _: (f(X, c), None), A, None, length=1)[0]


def mapped(f):  # a loop over batches: vmap inside
    return lambda A, c: lax.map(jax.vmap(lambda X: f(X, c)), A[None, None])[0, 0]


def products(f, A, dA, weights, orders=slice(None)):
    """Return products with the Hessian in A and a parameter, in the three orders of the modes."""

    def loss(x):
        return jnp.sum(weights * f(*x) ** 2)

    x, dx = (A, jnp.asarray(0.7, A.dtype)), (dA, jnp.asarray(0.3, A.dtype))

    def along(g):
        return lambda x: jax.jvp(g, (x,), (dx,))[1]

    def against(g):
        return lambda x: sum(jnp.vdot(a, b) for a, b in zip(jax.grad(g)(x), dx, strict=True))

    every = along(jax.grad(loss)), jax.grad(along(loss)), jax.grad(against(loss))
    return [jnp.append(*map(jnp.ravel, product(x))) for product in every[orders]]


@pytest.mark.parametrize(("f", "loop"), [*((f, scanned) for f in FUNCTIONS), (by_svd, mapped)])
def test_hessians_in_a_loop_are_those_without_it(f, loop):
    arguments = [jnp.asarray(gaussian((M, N), np.float64, seed)) for seed in range(3)]

    @jax.jit
    def both(*arguments):
        return products(loop(f), *arguments), products(f, *arguments, slice(1))

    looped, (wanted,) = both(*arguments)
    for found in looped:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
