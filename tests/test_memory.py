"""A long thin matrix: nothing of size m x m is allocated, by any function or its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from tests.helpers import assert_within, gaussian

pytestmark = pytest.mark.x32

LONG = 400_000
SHAPES = [pytest.param((LONG, 2), id="tall"), pytest.param((2, LONG), id="wide")]


def svd_loss(a):
    U, S, Vh = jaxsvd.svd(a, full_matrices=False)
    first = U[:, 0] if a.shape[0] == LONG else Vh[0]
    return jnp.sum(S**2) + jnp.sum(first[:100])


LOSSES = {
    "svd": svd_loss,
    "svdvals": lambda a: jnp.sum(jaxsvd.svdvals(a) ** 3),
    "core_svd": lambda a: jnp.sum(jaxsvd.core_svd(a, 1).C ** 2),
    "low_rank": lambda a: jnp.sum(jaxsvd.low_rank(a, 1) ** 2),
    "spectral_map": lambda a: jnp.sum(jaxsvd.spectral_map(jnp.tanh, a) ** 2),
    "spectral_sum": lambda a: jaxsvd.spectral_sum(jnp.square, a),
}


def compiled_within(function, a: jax.Array, multiple: float = 100):
    """Compile for a; assert that what is allocated is at most a multiple of its size."""
    compiled = jax.jit(function).lower(a).compile()
    memory = compiled.memory_analysis()
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert memory.argument_size_in_bytes == a.nbytes  # so the analysis counts in bytes
    assert allocated <= multiple * a.nbytes, f"{allocated / a.nbytes:.0f} times the matrix"
    return compiled


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_of_a_long_matrix(shape):
    a = jnp.asarray(gaussian(shape, np.float32))
    compiled = compiled_within(lambda a: jaxsvd.svd(a, full_matrices=False), a)
    U, S, Vh = compiled(a)
    assert_within(S, np.linalg.svd(np.asarray(a, np.float64), compute_uv=False), 1000)
    assert_within(U @ (S[:, None] * Vh), a, 1000)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_a_long_matrix(shape, name):
    a = jnp.asarray(gaussian(shape, np.float32))
    value, gradient = compiled_within(jax.value_and_grad(LOSSES[name]), a)(a)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient)


@pytest.mark.parametrize("name", ["svd", "spectral_map", "core_svd"])
def test_length_makes_no_singular_value_count_as_zero(name):
    """s_2 = s_1 / 50 stands far above rounding in single precision: du_2 = dA v_2 / s_2 stays."""

    def entry(a):
        if name == "svd":
            return jaxsvd.svd(a, full_matrices=False).U[0, 1]
        if name == "spectral_map":
            return jaxsvd.spectral_map(jnp.ones_like, a)[0, 1]
        U, _, Vh = jaxsvd.core_svd(a)
        return (U @ Vh)[0, 1]

    signs = np.array([[1, 1], [1, -1]]) / LONG**0.5  # two orthonormal columns, V = I
    a = jnp.asarray(np.tile(signs, (LONG // 2, 1)) * [1, 0.02], jnp.float32)
    slope = jax.jit(jax.grad(entry))(a)[0, 1]
    np.testing.assert_allclose(slope, 1 / 0.02, rtol=1e-3)
