"""Every public array function and its gradient lowers for CPU, CUDA and TPU from any machine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd

KEY = jax.random.key(0)


def square(A):
    """Return a square of four copies of A, for the functions of Hermitian matrices."""
    n = 2 * min(A.shape) - 4
    return jnp.tile(A, (2, 2))[:n, :n]


FUNCTIONS = {
    "svd": lambda A: jaxsvd.svd(A),
    "svd thin": lambda A: jaxsvd.svd(A, full_matrices=False),
    "svdvals": jaxsvd.svdvals,
    "spectral_map": lambda A: jaxsvd.spectral_map(jnp.sqrt, A),
    "spectral_sum": lambda A: jaxsvd.spectral_sum(jnp.log1p, A),
    "low_rank": lambda A: jaxsvd.low_rank(A, 2),
    "core_svd": lambda A: jaxsvd.core_svd(A, 2),
    "truncated_svd": lambda A: jaxsvd.truncated_svd(A, 2, method="krylov"),
    "subspace": lambda A: jaxsvd.truncated_svd(A, 2, method="subspace"),
    "randomized_svd": lambda A: jaxsvd.randomized_svd(KEY, A, 2),
    "eigh": lambda A: jaxsvd.eigh(square(A)),
    "core_eigh": lambda A: jaxsvd.core_eigh(square(A), 2),
    "truncated_eigh": lambda A: jaxsvd.truncated_eigh(square(A), 2, "LM", method="krylov"),
    "hermitian_map": lambda A: jaxsvd.hermitian_map(jnp.exp, square(A)),
    "sqrtm": lambda A: jaxsvd.linalg.sqrtm(square(A)),
    "adaptive_svd": lambda A: jaxsvd.adaptive_svd(KEY, A, 0.1, max_rank=4),
}

# What the platform's own libraries are called for; anything else would be a surprise, and a
# callback would be a round trip to the host.
EXPECTED = {
    "cpu": re.compile(r"lapack_.*|Sharding|annotate_device_placement"),
    "cuda": re.compile(
        r"cusolver_.*|cu_threefry.*|.*gesvd.*|.*syevd.*|.*potrf.*|.*trsm.*|Sharding"
    ),
    "tpu": re.compile(
        r"Qr|Eigh|Cholesky|Sharding|ProductOfElementaryHouseholderReflectors|LuDec.*"
    ),
}


@pytest.mark.parametrize("platform", EXPECTED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_for_every_platform_without_the_host(name, platform):
    function = FUNCTIONS[name]

    def loss(A):
        return sum(jnp.sum(jnp.real(x) ** 2) for x in jax.tree.leaves(function(A)))

    A = jax.ShapeDtypeStruct((80, 72), np.float32)
    text = (
        jax.jit(jax.value_and_grad(loss)).trace(A).lower(lowering_platforms=(platform,)).as_text()
    )
    called = set(re.findall(r"custom_call @(\w+)", text))
    called |= set(re.findall(r'call_target_name = "([^"]+)"', text))
    surprising = {target for target in called if not EXPECTED[platform].fullmatch(target)}
    assert not surprising
    assert "callback" not in text
