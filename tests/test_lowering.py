"""Every public array function and its gradient lowers for CPU, CUDA and TPU from any machine."""

import re

import jax
import jax.extend
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


def traced(function, shape):
    """Return the traced value and gradient of a loss of all results of a function."""

    def loss(A):
        return sum(jnp.sum(jnp.real(x) ** 2) for x in jax.tree.leaves(function(A)))

    return jax.jit(jax.value_and_grad(loss)).trace(jax.ShapeDtypeStruct(shape, np.float32))


def equations(jaxpr):
    """Return the number of equations of a jaxpr, with those of the jaxprs in it."""
    inside = [sub for eqn in jaxpr.eqns for sub in jax.extend.core.jaxprs_in_params(eqn.params)]
    return len(jaxpr.eqns) + sum(equations(sub) for sub in inside)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_program_does_not_grow_with_the_matrix(name):
    # Two shapes on the same side of every crossing of the router's.
    small, large = (traced(FUNCTIONS[name], shape) for shape in ((320, 288), (480, 448)))
    assert equations(small.jaxpr.jaxpr) == equations(large.jaxpr.jaxpr)


@pytest.mark.parametrize("name", ["truncated_svd", "core_svd", "randomized_svd", "low_rank"])
def test_the_program_does_not_grow_with_k(name):
    def first(k):
        if name == "randomized_svd":
            return lambda A: jaxsvd.randomized_svd(KEY, A, k)
        return lambda A: getattr(jaxsvd, name)(A, k)

    few, many = (traced(first(k), (2000, 1600)) for k in (66, 78))
    assert equations(few.jaxpr.jaxpr) == equations(many.jaxpr.jaxpr)


@pytest.mark.parametrize("platform", EXPECTED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_lowers_for_every_platform_without_the_host(name, platform):
    text = traced(FUNCTIONS[name], (80, 72)).lower(lowering_platforms=(platform,)).as_text()
    called = set(re.findall(r"custom_call @(\w+)", text))
    called |= set(re.findall(r'call_target_name = "([^"]+)"', text))
    surprising = {target for target in called if not EXPECTED[platform].fullmatch(target)}
    assert not surprising
    assert "callback" not in text
