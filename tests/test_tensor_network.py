"""Tensor renormalization of the 2D Ising model: the energy as a derivative, against Onsager.

The coarse-graining of Levin and Nave (2007) truncates an SVD at every step, and its matrices have
ties at every step. The energy is minus the derivative of log Z by the inverse temperature through
all of them. Onsager (1944) has it in closed form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ellipk

import jaxsvd

CHI, STEPS = 16, 16


def onsager_energy(beta):
    k = 2 * np.sinh(2 * beta) / np.cosh(2 * beta) ** 2
    return -(1 + 2 / np.pi * (2 * np.tanh(2 * beta) ** 2 - 1) * ellipk(k**2)) / np.tanh(2 * beta)


def core_split(M, k):
    U, C, Vh = jaxsvd.core_svd(M, k)
    return U, C @ Vh


def jnp_split(M, k):
    U, S, Vh = jnp.linalg.svd(M, full_matrices=False)
    return U[:, :k], S[:k, None] * Vh[:k]


def coarse_grain(T, k, split):
    """Return the tensor of half as many sites; legs are up, left, down, right."""
    u, l, d, r = T.shape
    A, B = split(T.reshape(u * l, d * r), k)
    S1, S3 = A.reshape(u, l, k), B.reshape(k, d, r)
    A, B = split(T.transpose(0, 3, 1, 2).reshape(u * r, l * d), k)
    S2, S4 = A.reshape(u, r, k), B.reshape(k, l, d)
    top = jnp.einsum("aij,bjk->abik", S3, S4)  # from below: i left column, k right column
    bottom = jnp.einsum("klc,ile->ceik", S1, S2)
    return jnp.einsum("abik,ceik->aecb", top, bottom)


def log_partition_function(beta, split):
    """Return log Z per site of a torus of 2^STEPS sites."""
    W = jnp.stack([jnp.sqrt(jnp.cosh(beta)), jnp.sqrt(jnp.sinh(beta))])
    W = jnp.stack([W, W * jnp.array([1.0, -1.0])])
    T = jnp.einsum("ai,aj,ak,al->ijkl", W, W, W, W)
    total, weight = jnp.zeros(()), 1.0
    # The first matrices have ranks 2 and 4; from then on the shape stays.
    for k in (2, 4, CHI):
        norm = jnp.max(jnp.abs(T))
        total, weight = total + weight * jnp.log(norm), weight / 2
        T = coarse_grain(T / norm, k, split)

    def body(carry, _):
        T, total, weight = carry
        norm = jnp.max(jnp.abs(T))
        T = coarse_grain(T / norm, CHI, split)
        return (T, total + weight * jnp.log(norm), weight / 2), None

    start = (T, total, jnp.asarray(weight))
    (T, total, weight), _ = jax.lax.scan(body, start, None, length=STEPS - 3)
    return total + weight * jnp.log(jnp.einsum("ijij->", T))


@functools.cache
def energy(mode, split):
    log_z = functools.partial(log_partition_function, split=split)
    if mode == "grad":
        return jax.jit(lambda beta: -jax.grad(log_z)(beta))
    return jax.jit(lambda beta: -jax.jvp(log_z, (beta,), (jnp.ones(()),))[1])


@pytest.mark.parametrize("mode", ["grad", "jvp"])
@pytest.mark.parametrize("beta", [0.3, 0.4, 0.5])
def test_energy_is_onsager_s(beta, mode):
    found = float(energy(mode, core_split)(jnp.asarray(beta)))
    assert found == pytest.approx(onsager_energy(beta), abs=3e-4)


def test_the_same_through_jnp_is_nan():
    assert np.isnan(float(energy("grad", jnp_split)(jnp.asarray(0.3))))
