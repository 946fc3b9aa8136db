"""The rules: jax.vjp is the written pullback, jax.jvp the pushforward, one the other's adjoint.

A Case joins a primitive to the rules of `jaxsvd.rules` that serve it. The factors that a rule gets
are those the primitive returned; only the phases, which are fixed outside the rules, are left as
the algorithm returns them (fix_signs=False).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad

import jaxsvd
from jaxsvd import CoreSVD, SVDResult, rules
from tests.helpers import (
    COMPLEX128,
    FLOAT64,
    assert_within,
    eps,
    equations,
    finite_differences,
    gaussian,
    like,
    pairing,
    well_separated,
)


def thin(a) -> SVDResult:
    return jaxsvd.svd(a, full_matrices=False, fix_signs=False)


def full(a) -> SVDResult:
    return jaxsvd.svd(a, fix_signs=False)


def bounded(s):
    return s / (1 + s * s)


class Case(NamedTuple):
    """A primitive; its rules as functions of (matrix, value, cotangent or tangent)."""

    primitive: Callable
    pullback: Callable
    pushforward: Callable


def svd_case(function) -> Case:
    return Case(
        function,
        lambda a, result, cotangent: rules.svd_pullback(result, cotangent),
        lambda a, result, dA: rules.svd_pushforward(result, dA),
    )


def core_case(cut: Callable[[int], int]) -> Case:
    """core_svd at k = cut(min(m, n))."""

    def core(a):
        return jaxsvd.core_svd(a, cut(min(a.shape)))

    def numbers(a):
        return rules.full_numbers(thin(a), cut(min(a.shape)))

    return Case(
        core,
        lambda a, result, cotangent: rules.core_pullback(result, cotangent, numbers(a)),
        lambda a, result, dA: rules.core_pushforward(a, result, dA, numbers(a)),
    )


def low_rank_case(k: int) -> Case:
    """low_rank is the product of the core's factors, so its rules are theirs and the product's."""

    def multiply(core: CoreSVD):
        return core.U @ core.C @ core.Vh

    def pullback(a, result, cotangent):
        core = jaxsvd.core_svd(a, k)
        (of_factors,) = jax.vjp(multiply, core)[1](cotangent)
        return rules.core_pullback(core, of_factors, rules.full_numbers(thin(a), k))

    def pushforward(a, result, dA):
        core = jaxsvd.core_svd(a, k)
        tangents = rules.core_pushforward(a, core, dA, rules.full_numbers(thin(a), k))
        return jax.jvp(multiply, (core,), (tangents,))[1]

    return Case(lambda a: jaxsvd.low_rank(a, k), pullback, pushforward)


CASES = {
    "svd thin": svd_case(thin),
    "svd full": svd_case(full),
    "svdvals": Case(
        jaxsvd.svdvals,
        lambda a, result, cotangent: rules.svdvals_pullback(thin(a), cotangent),
        lambda a, result, dA: rules.svdvals_pushforward(thin(a), dA),
    ),
    "core_svd k=2": core_case(lambda smallest: 2),
    "core_svd k=min": core_case(lambda smallest: smallest),
    "low_rank": low_rank_case(2),
    "spectral_map": Case(
        lambda a: jaxsvd.spectral_map(bounded, a),
        lambda a, result, cotangent: rules.spectral_pullback(thin(a), bounded, cotangent),
        lambda a, result, dA: rules.spectral_pushforward(thin(a), bounded, dA),
    ),
}

MATRICES = [
    pytest.param((4, 4), np.float64, id="square float64"),
    pytest.param((4, 4), np.complex128, id="square complex128"),
    pytest.param((6, 4), np.complex128, id="tall complex128"),
    pytest.param((4, 6), np.float64, id="wide float64"),
    pytest.param((6, 4), np.float32, id="tall float32", marks=pytest.mark.x32),
    pytest.param((4, 6), np.complex64, id="wide complex64", marks=pytest.mark.x32),
]


@pytest.mark.parametrize(("shape", "dtype"), MATRICES)
@pytest.mark.parametrize("name", CASES)
def test_vjp_and_jvp_are_the_written_rules(name, shape, dtype):
    primitive, pullback, pushforward = CASES[name]
    a = jnp.asarray(well_separated(*shape, dtype))
    dA = like(a, seed=5)
    cotangent = like(jax.eval_shape(primitive, a), seed=7)

    @jax.jit
    def by_jax_and_by_hand(a, dA, cotangent):
        value, vjp = jax.vjp(primitive, a)
        by_jax = vjp(cotangent)[0], jax.jvp(primitive, (a,), (dA,))[1]
        return by_jax, (pullback(a, value, cotangent), pushforward(a, value, dA))

    (reverse, forward), (pulled, pushed) = by_jax_and_by_hand(a, dA, cotangent)
    assert reverse.dtype == dtype
    assert_within(reverse, pulled, 20)
    assert_within(forward, pushed, 20)

    # Forward against reverse: two transposes of one map.
    difference = abs(pairing(cotangent, forward) - pairing(reverse, dA))
    size = np.linalg.norm(reverse) * np.linalg.norm(dA)
    assert difference <= 20 * eps(dtype) * size, difference / size / eps(dtype)


# ------------------------------------------------------------- the rule is what is differentiated


def projector_loss(a):
    U = jaxsvd.svd(a, full_matrices=False).U[:, :1]
    return jnp.sum((U @ U.T) ** 3)


def core_loss(a):
    U, C, Vh = jaxsvd.core_svd(a, 2)
    return jnp.sum((U @ C @ C @ Vh) ** 2)


LOSSES = {
    "svd": (projector_loss, "svd"),
    "svd full": (lambda a: jnp.sum(jaxsvd.svd(a).Vh[:1] ** 4), "svd"),
    "svd hermitian": (lambda a: jnp.sum(jaxsvd.svd(a.T @ a, hermitian=True).U[0] ** 4), "eigh"),
    "svdvals": (lambda a: jnp.sum(jaxsvd.svdvals(a) ** 3), "svd"),
    "core_svd": (core_loss, "svd"),
    "low_rank": (lambda a: jnp.sum(jaxsvd.low_rank(a, 2) ** 3), "svd"),
    "spectral_map": (lambda a: jnp.sum(jaxsvd.spectral_map(bounded, a) ** 2), "svd"),
    "spectral_sum": (lambda a: jaxsvd.spectral_sum(bounded, a), "svd"),
    "core_map": (lambda a: jnp.sum(jaxsvd.core_map(jnp.sin, a.T @ a) ** 2), "eigh"),
}


def decompositions(program) -> list[tuple[str, tuple[str, ...]]]:
    return [found for found in equations(program) if found[0] in ("svd", "eigh")]


def along(loss):
    """A Hessian-vector product, forward over reverse."""
    return lambda a: jax.jvp(jax.grad(loss), (a,), (jnp.ones_like(a),))[1]


@pytest.mark.x32
@pytest.mark.parametrize("order", [jax.grad, along], ids=["gradient", "hessian"])
@pytest.mark.parametrize("name", LOSSES)
def test_one_decomposition_in_the_whole_program(name, order):
    loss, decomposition = LOSSES[name]
    found = decompositions(jax.make_jaxpr(order(loss))(jnp.zeros((5, 3))))
    assert [primitive for primitive, _ in found] == [decomposition]
    if name != "core_map":  # the one door to the algorithms
        assert "custom_vmap_call" in found[0][1]


@pytest.mark.x32
@pytest.mark.parametrize("name", LOSSES)
def test_the_linear_part_holds_no_decomposition(name):
    loss, _ = LOSSES[name]
    a = jnp.asarray(gaussian((5, 3), np.float32))
    _, linear = jax.linearize(loss, a)
    assert decompositions(jax.make_jaxpr(linear)(a)) == []


@pytest.fixture
def asked(monkeypatch):
    """The decompositions whose own derivative rule JAX asks for, in order."""
    asked = []

    def listen(key):
        original = ad.primitive_jvps[key]

        def rule(*args, **kwargs):
            asked.append(key.name)
            return original(*args, **kwargs)

        monkeypatch.setitem(ad.primitive_jvps, key, rule)

    for key in [key for key in ad.primitive_jvps if key.name in ("svd", "eigh")]:
        listen(key)
    return asked


@pytest.mark.x32
@pytest.mark.parametrize("order", [jax.grad, along], ids=["gradient", "hessian"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_derivative_of_the_algorithm_is_never_asked_for(name, order, asked):
    # A shape for each test, so that nothing traced before is used again.
    a = jnp.zeros((7 + 2 * list(LOSSES).index(name) + (order is along), 3))
    jax.make_jaxpr(order(LOSSES[name][0]))(a)
    assert asked == []


@pytest.mark.x32
def test_the_derivative_of_an_algorithm_would_be_noticed(asked):
    def loss(a):
        return jax.lax.linalg.svd(a, full_matrices=False)[1].sum()

    jax.make_jaxpr(jax.grad(loss))(jnp.zeros((4, 3)))
    assert asked == ["svd"]


# ---------------------------------------------------------------------------------------- cost


def flops(function, *args) -> float:
    """The flops of a compiled program; those inside LAPACK are not counted."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("shape", [(256, 256), (400, 100), (100, 400)], ids=str)
def test_vjp_costs_no_more_than_that_of_jnp(shape):
    a = jax.ShapeDtypeStruct(shape, np.float64)
    cost = {}
    for library in (jaxsvd, jnp.linalg):

        def svd(a, library=library):
            return tuple(library.svd(a, full_matrices=False))

        def vjp(a, cotangent, svd=svd):
            return jax.vjp(svd, a)[1](cotangent)

        cost[library] = flops(vjp, a, jax.eval_shape(svd, a)) - flops(svd, a)
    ratio = cost[jaxsvd] / cost[jnp.linalg]
    assert ratio <= 1.1, f"{ratio:.3f} times the flops of jnp.linalg.svd's VJP"
    assert ratio > 0.3, f"{ratio:.3f}: the two are no longer counted alike"


# --------------------------------------------- losses that depend on phases and single vectors


def gauge_dependent(columns: int, weights):
    """A loss of the entries of U, S and Vh themselves, so of every sign and phase."""

    def loss(a):
        U, S, Vh = jaxsvd.svd(a, full_matrices=False)
        U, Vh = U[:, :columns], Vh[:columns]
        real = jnp.sum(weights[0] * U**3) + jnp.sum(weights[1] * Vh) + jnp.sum(weights[1] * Vh**2)
        return jnp.real(real) + jnp.sum(jnp.sin(S)) * jnp.real(U[0, 0])

    return loss


SMALL = [
    pytest.param((4, 4), id="square"),
    pytest.param((5, 3), id="tall"),
    pytest.param((3, 5), id="wide"),
]


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128])
@pytest.mark.parametrize("shape", SMALL)
def test_gauge_dependent_loss_has_the_derivative_of_the_function_as_it_stands(shape, dtype):
    (m, n), k = shape, min(shape)
    a = well_separated(m, n, dtype, seed=3)
    weights = gaussian((m, k), np.complex128, 1), gaussian((k, n), np.complex128, 2)
    if dtype == np.float64:
        weights = tuple(w.real for w in weights)
    loss = gauge_dependent(k, weights)
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(a))
    np.testing.assert_allclose(gradient, finite_differences(loss, a), rtol=0, atol=1e-6)
    assert np.max(np.abs(gradient)) > 0.1


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128])
@pytest.mark.parametrize("shape", SMALL)
def test_full_matrices_for_losses_of_the_extra_subspace(shape, dtype):
    (m, n), k = shape, min(shape)
    a = well_separated(m, n, dtype, seed=3)
    left, right = gaussian((m, m), dtype, 1), gaussian((n, n), dtype, 2)
    thin_loss = gauge_dependent(k, (gaussian((m, k), dtype, 4), gaussian((k, n), dtype, 5)))

    def loss(a):
        U, _, Vh = jaxsvd.svd(a)
        N, M = U[:, k:], jnp.conj(Vh[k:]).mT
        outside = jnp.sum(left * (N @ jnp.conj(N).mT)) + jnp.sum(right * (M @ jnp.conj(M).mT))
        # Thin vectors beside the extra ones: both kinds of cotangent at once.
        single = jnp.sum(left[:, :k] * U[:, :k] ** 2) + jnp.sum(right[:k] * Vh[:k] ** 3)
        return jnp.real(outside + single) + thin_loss(a)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(a))
    np.testing.assert_allclose(gradient, finite_differences(loss, a), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128])
def test_hermitian_at_pairs_of_opposite_sign(dtype):
    # w = 2, -2 is a tie of singular values that eigh keeps apart; f(S) and projectors are smooth.
    Q = np.linalg.qr(gaussian((4, 4), dtype))[0]
    a = (Q * [2.0, -2.0, 1.0, -0.5]) @ np.conj(Q.T)
    weight = gaussian((4, 4), dtype, 1)

    def loss(a):
        U, S, _ = jaxsvd.svd(a, hermitian=True)
        return jnp.real(jnp.sum(weight * (U[:, :2] @ jnp.conj(U[:, :2]).mT))) + jnp.sum(S**2)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(a))
    np.testing.assert_allclose(gradient, finite_differences(loss, a), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [FLOAT64, COMPLEX128])
def test_subset_has_the_derivative_of_the_whole(dtype):
    a = jnp.asarray(well_separated(5, 3, dtype))

    @jax.jit
    def gradients(a):
        def of_part(a):
            U, S, _ = jaxsvd.svd(a, full_matrices=False, subset_by_index=(1, 3))
            return jnp.sum(jnp.real(U**3)) + jnp.sum(S**2)

        def of_whole(a):
            U, S, _ = jaxsvd.svd(a, full_matrices=False)
            return jnp.sum(jnp.real(U[:, 1:] ** 3)) + jnp.sum(S[1:] ** 2)

        return jax.grad(of_part)(a), jax.grad(of_whole)(a)

    assert_within(*gradients(a), 20)


@pytest.mark.x32
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_derivatives_in_half_precision_are_computed_in_single(dtype):
    a = jnp.asarray(well_separated(6, 4, np.float32)).astype(dtype)
    cotangent = like(jax.eval_shape(thin, a), seed=7)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), cotangent)
    result, vjp = jax.vjp(thin, a)
    expected = rules.svd_pullback(thin(a.astype(jnp.float32)), single)
    assert result.U.dtype == dtype
    assert_within(vjp(cotangent)[0], expected, 4)


@pytest.mark.x32
def test_degeneracy_tol_decides_what_is_dropped():
    a = jnp.diag(jnp.array([1.0, 0.9, 0.5], jnp.float32))

    def loss(a, tol):
        return jaxsvd.svd(a, degeneracy_tol=tol).U[0, 1]

    assert float(jnp.abs(jax.grad(loss)(a, 0.01)).max()) > 1
    # With 0.2 the first two count as tied: the 1/(s_1 - s_0) term is gone, E stays.
    assert float(jnp.abs(jax.grad(loss)(a, 0.2)).max()) < 1
