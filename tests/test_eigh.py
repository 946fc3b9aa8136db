"""`eigh` and `core_eigh`: values, phases, derivatives at distinct and at tied eigenvalues.

Oracles: NumPy, its finite differences, and closed forms in which no eigenvalue occurs: A^3, and
projectors as the limit of a Newton iteration for the sign of a matrix.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    COMPLEX128,
    DTYPES,
    FLOAT64,
    assert_same_bits,
    assert_within,
    double,
    eps,
    finite_differences,
    gaussian,
    hermitian,
    like,
    pairing,
)
from jax import lax

import jaxsvd
from jaxsvd import EighResult, rules
from jaxsvd.algorithms import dense

REAL, COMPLEX = np.float64, np.complex128
BOTH = [FLOAT64, COMPLEX128]
DISTINCT = (2.0, 1.1, 0.3, -0.9)
TIED = (2.0, 2.0, 0.3, -0.9)


def adjoint(X):  # of an array of NumPy or of JAX
    return X.conj().swapaxes(-1, -2)


def herm(X):
    return (X + adjoint(X)) / 2


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_a_gpu_are_mended(dtype, monkeypatch):
    """cuSOLVER's kernel for up to 32 rows leaves columns that are orthonormal to 50 eps."""
    solve = lax.linalg.eigh

    def rough(a, **options):
        Q, w = solve(a, **options)
        return Q * jnp.asarray(1 + 50 * eps(dtype), Q.dtype), w

    monkeypatch.setattr(lax.linalg, "eigh", rough)
    A = jnp.asarray(np.stack([hermitian(values, dtype, 3) for values in (DISTINCT, TIED)]))

    def lost(platform):
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, **on: on[platform](*args))
        Q = double(dense.eigenpairs(A)[1])
        return np.abs(adjoint(Q) @ Q - np.eye(4)).max() / eps(dtype)

    assert lost("default") > 50
    assert lost("cuda") < 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_vectors_and_phases(dtype):
    A = np.stack([hermitian(values, dtype, 3) for values in (DISTINCT, TIED)])
    result = jaxsvd.eigh(A)
    assert isinstance(result, EighResult)
    w, Q = result
    assert (w.dtype, Q.dtype) == (np.finfo(dtype).dtype, dtype)
    tolerance = 30 * eps(dtype)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(double(A)), atol=tolerance)
    w, Q = double(w), double(Q)
    np.testing.assert_allclose((Q * w[:, None, :]) @ adjoint(Q), double(A), atol=tolerance)
    np.testing.assert_allclose(adjoint(Q) @ Q, np.broadcast_to(np.eye(4), Q.shape), atol=tolerance)
    for vectors in Q:
        leading = vectors[np.argmax(np.abs(vectors), axis=0), range(4)]
        np.testing.assert_allclose(leading, np.abs(leading), atol=tolerance)
    by_jax = jnp.linalg.eigh(A)
    assert by_jax._fields == result._fields
    assert_within(result.eigenvalues, by_jax.eigenvalues, 10)
    assert_within(np.abs(result.eigenvectors[0]), np.abs(by_jax.eigenvectors[0]), 50)


def test_batches_vmap_and_jit_are_one_program():
    A = np.stack([hermitian(DISTINCT, COMPLEX, i) for i in range(6)]).reshape(2, 3, 4, 4)
    for function in (jaxsvd.eigh, functools.partial(jaxsvd.core_eigh, k=2)):
        together = function(A)
        assert_same_bits(together, jax.vmap(jax.vmap(function))(A))
        assert_within(jax.jit(function)(A), together, 20)
        one = jax.tree.map(lambda x: x[1, 2], together)
        assert_within(function(A[1, 2]), one, 20)
    assert [x.shape for x in jaxsvd.eigh(np.zeros((5, 0, 0)))] == [(5, 0), (5, 0, 0)]
    assert [x.shape for x in jaxsvd.core_eigh(np.zeros((5, 0, 0)))] == [(5, 0, 0)] * 2
    half = jaxsvd.eigh(jnp.eye(3, dtype=jnp.bfloat16))
    assert {x.dtype for x in half} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("dtype", BOTH)
def test_other_than_hermitian_input(dtype):
    A = gaussian((4, 4), dtype, 1) + np.diag(np.arange(4))
    lower = np.tril(A, -1) + adjoint(np.tril(A, -1)) + np.diag(np.diag(A).real)
    upper = adjoint(np.triu(A, 1)) + np.triu(A, 1) + np.diag(np.diag(A).real)
    above, below = (np.triu(np.full((4, 4), np.nan), 1).T[::s, ::s] for s in (-1, 1))
    values = np.linalg.eigvalsh
    np.testing.assert_allclose(jaxsvd.eigh(A).eigenvalues, values(herm(A)), atol=1e-13)
    assert np.isnan(jaxsvd.eigh(A + above).eigenvalues).all()
    for triangle, given, wanted in (("L", A + above, lower), ("U", A + below, upper)):
        found = jaxsvd.eigh(given, triangle, symmetrize_input=False)
        np.testing.assert_allclose(found.eigenvalues, values(wanted), atol=1e-13)

    def core(A):
        return jnp.trace(jaxsvd.core_eigh(A, 2, symmetrize_input=False).C).real

    np.testing.assert_allclose(core(A + above), values(lower)[2:].sum(), rtol=1e-13)
    gradient = jax.grad(core)(A)
    np.testing.assert_allclose(gradient, finite_differences(core, A), atol=1e-8)
    assert not np.triu(gradient, 1).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_in_nan_out(value):
    A = np.eye(4)
    A[2, 1] = A[1, 2] = value
    for result in (jaxsvd.eigh(A), jaxsvd.core_eigh(A, 2)):
        assert all(np.isnan(x).all() for x in result)


@pytest.mark.x32
@pytest.mark.parametrize("n", [6, 40, 130])  # LAPACK's blocks begin at 32, divide and conquer at 26
def test_a_matrix_of_nothing_but_infinities(n):
    @jax.jit
    def all_of(A):
        def loss(A):
            w, Q = jaxsvd.eigh(A)
            q, c = jaxsvd.core_eigh(A, 2)
            total = jnp.sum(w) + jnp.sum(Q) + jnp.sum(q @ c)
            return total + jnp.sum(jaxsvd.hermitian_map(jnp.tanh, A))

        return jax.value_and_grad(loss)(A)

    for value in (np.inf, -np.inf, np.nan):
        assert all(np.isnan(x).all() for x in all_of(np.full((n, n), value, np.float32)))


@pytest.mark.x32
def test_double_precision_beyond_the_range_of_single():
    """With x64 off 1e160 becomes Inf on its way into a program, and NaN comes out.

    NumPy warns of the overflow. Where warnings are errors JAX 0.10.2 dies of that, for any function
    (jax.jit(lambda x: x)(np.full(3, 1e160))), so it is silenced here.
    """
    A = hermitian(DISTINCT, np.float64, 2) * 1e160
    gradient = jax.jit(
        jax.grad(lambda A: jnp.sum(jaxsvd.core_eigh(A, 2).C) + jaxsvd.eigh(A)[1][0, 0])
    )
    with np.errstate(over="ignore"):
        found = np.asarray(gradient(A))
    assert np.isfinite(found).all() if jax.config.jax_enable_x64 else np.isnan(found).all()


# ------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp_and_jvp_are_the_written_rules(dtype):
    A = jnp.asarray(hermitian(DISTINCT, dtype, 2))
    dA = like(A, seed=5)
    primitive = functools.partial(jaxsvd.eigh, fix_signs=False)
    cotangent = like(jax.eval_shape(primitive, A), seed=7)

    @jax.jit
    def by_jax_and_by_hand(A, dA, cotangent):
        value, vjp = jax.vjp(primitive, A)
        by_jax = vjp(cotangent)[0], jax.jvp(primitive, (A,), (dA,))[1]
        by_hand = rules.eigh_pullback(value, cotangent), rules.eigh_pushforward(value, dA)
        return by_jax, by_hand

    (reverse, forward), (pulled, pushed) = by_jax_and_by_hand(A, dA, cotangent)
    assert_within(reverse, pulled, 20)
    assert_within(forward, pushed, 20)
    difference = abs(pairing(cotangent, forward) - pairing(reverse, dA))
    assert difference <= 20 * eps(dtype) * np.linalg.norm(reverse) * np.linalg.norm(dA)


@pytest.mark.parametrize("dtype", BOTH)
def test_every_loss_at_distinct_eigenvalues_that_of_phases_included(dtype):
    A, G = hermitian(DISTINCT, dtype, 2), gaussian((4, 4), dtype, 3)

    def loss(A):
        w, Q = jaxsvd.eigh(A)
        return jnp.sum((G * Q).real) + jnp.sum(w**2 * np.arange(4.0)) + jnp.abs(Q[0, 1]) * w[2]

    np.testing.assert_allclose(jax.grad(loss)(A), finite_differences(loss, A), atol=1e-7)


def numpy_projector(A, columns):
    Q = np.linalg.eigh(A)[1][:, columns]
    return Q @ adjoint(Q)


@pytest.mark.parametrize("dtype", BOTH)
def test_projectors_at_ties(dtype):
    A, E, G = hermitian(TIED, dtype, 2), herm(gaussian((4, 4), dtype, 3)), gaussian((4, 4), dtype)

    def loss(A):
        w, Q = jaxsvd.eigh(A)
        Q = Q[:, 2:]
        return jnp.sum((G * (Q @ adjoint(Q))).real) + jnp.sum(w[2:] ** 3)

    def by_numpy(h):
        projector = numpy_projector(A + h * E, slice(2, None))
        values = np.linalg.eigvalsh(A + h * E)[2:]
        return np.sum((G * projector).real) + np.sum(values**3)

    wanted = (8 * (by_numpy(1e-4) - by_numpy(-1e-4)) - (by_numpy(2e-4) - by_numpy(-2e-4))) / 12e-4
    slope, gradient = jax.jvp(loss, (A,), (E,))[1], jax.grad(loss)(A)
    np.testing.assert_allclose(slope, wanted, rtol=1e-8)
    np.testing.assert_allclose(np.sum((gradient * E).real), wanted, rtol=1e-8)


@pytest.mark.x32
def test_finite_everywhere():
    def loss(A):
        w, Q = jaxsvd.eigh(A)
        return jnp.sum(w * jnp.abs(Q[0]) ** 2) + jnp.sum(Q)

    for A in (np.eye(3), np.zeros((3, 3)), np.ones((3, 3))):
        assert np.isfinite(jax.hessian(loss)(jnp.asarray(A, jnp.float32))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_that_over_or_underflow_when_squared(dtype):
    is_double = eps(dtype) < 1e-10
    A, G = hermitian(DISTINCT, dtype, 2), gaussian((4, 4), dtype, 3)

    def loss(A, unit):  # of degree zero
        w, Q = jaxsvd.eigh(A)
        q, c = jaxsvd.core_eigh(A, 2)
        total = jnp.sum((G * Q).real) + jnp.sum((G * (q @ adjoint(q))).real)
        return total + w[0] / unit + jnp.sum(jnp.abs(c / unit.astype(c.dtype)) ** 2)

    gradient = jax.jit(jax.grad(loss))
    real = np.finfo(dtype).dtype.type
    wanted = double(gradient(A, real(1)))
    for size in (1e160, 1e-160) if is_double else (1e20, 1e-20):
        got = double(gradient(A * real(size), real(size))) * float(real(size))
        np.testing.assert_allclose(got, wanted, atol=500 * eps(dtype) * np.abs(wanted).max())


# ------------------------------------------------------------------------------- second order


def along_a_line(loss):
    """(A, E, F) -> Hessian along E, F in the three orders, third derivative along E, E, F."""

    def all_of(A, E, F):
        def value(t, u):
            return loss(A + t * E + u * F)

        def forward(f, i):
            def slope(*t):
                along = lambda x: f(*t[:i], x, *t[i + 1 :])  # noqa: E731
                return jax.jvp(along, (t[i],), (1.0,))[1]

            return slope

        second = {
            "forward over reverse": forward(jax.grad(value, 1), 0),
            "reverse over forward": jax.grad(forward(value, 1), 0),
            "reverse over reverse": jax.grad(jax.grad(value, 1), 0),
        }
        third = forward(second["reverse over forward"], 0)
        return {name: f(0.0, 0.0) for name, f in second.items()}, third(0.0, 0.0)

    return jax.jit(all_of)


def by_jvp_alone(loss):
    """(A, E, F) -> Hessian along E, F, third derivative along E, E, F, in forward mode."""

    def slope(f, direction):
        return lambda A: jax.jvp(f, (A,), (direction,))[1]

    def both(A, E, F):
        second = slope(slope(loss, F), E)
        return second(A), slope(second, E)(A)

    return jax.jit(both)


@pytest.mark.parametrize("dtype", BOTH)
def test_second_order_at_distinct_eigenvalues(dtype):
    A, E, F = (herm(gaussian((4, 4), dtype, seed)) for seed in (2, 3, 4))
    A, G = hermitian(DISTINCT, dtype, 2), gaussian((4, 4), dtype, 5)

    def loss(A):
        w, Q = jaxsvd.eigh(A)
        return jnp.sum((G * ((Q * (w**3)[None, :].astype(Q.dtype)) @ adjoint(Q))).real)

    seconds, third = along_a_line(loss)(A, E, F)
    exact = by_jvp_alone(lambda A: jnp.sum((G * (A @ A @ A)).real))(A, E, F)
    for got in seconds.values():
        np.testing.assert_allclose(got, exact[0], rtol=1e-11)
    np.testing.assert_allclose(third, exact[1], rtol=1e-10)


def by_newton(A, which):
    """The projector on the wanted end of a spectrum, cut at 1.3: no eigenvalue is computed."""
    eye = jnp.eye(len(A), dtype=A.dtype)
    X = {"LA": A - 1.3 * eye, "SA": -A - 1.3 * eye, "LM": (A @ A - 1.69 * eye) / 2}[which] / 3.5
    X = jax.lax.fori_loop(0, 30, lambda _, X: 1.5 * X - 0.5 * X @ X @ X, X)
    return (eye + X) / 2


ENDS = {
    "LA": (2.0, 2.0, 2.0, 0.5, -1.0),
    "SA": (-2.0, -2.0, -1.8, 1.0, 1.0),
    "LM": (2.0, -2.0, 2.0, 0.5, -0.5),
}


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("which", ENDS)
def test_core_to_third_order_at_ties(which, dtype):
    A, E, F = (herm(gaussian((5, 5), dtype, seed)) for seed in (2, 3, 4))
    A, G = hermitian(ENDS[which], dtype, 2), gaussian((5, 5), dtype, 5)

    def loss(A):
        Q, C = jaxsvd.core_eigh(A, 3, which)
        return jnp.sum((G * (Q @ C @ C @ adjoint(Q))).real) + jnp.abs(jnp.trace(C)) ** 2

    def wanted(A):
        P = by_newton(A, which)
        return jnp.sum((G * (P @ A @ A)).real) + jnp.abs(jnp.trace(P @ A)) ** 2

    (seconds, third), exact = along_a_line(loss)(A, E, F), by_jvp_alone(wanted)(A, E, F)
    for got in seconds.values():
        np.testing.assert_allclose(got, exact[0], rtol=1e-9)
    np.testing.assert_allclose(third, exact[1], rtol=1e-8)


@pytest.mark.parametrize("dtype", BOTH)
def test_the_whole_core_at_ties_is_the_matrix(dtype):
    A, E, F = (herm(gaussian((4, 4), dtype, seed)) for seed in (2, 3, 4))
    A, G = hermitian(TIED, dtype, 2), gaussian((4, 4), dtype, 5)

    def loss(A):
        Q, C = jaxsvd.core_eigh(A)
        return jnp.sum((G * (Q @ jaxsvd.core_map(jnp.exp, C) @ adjoint(Q))).real)

    found = along_a_line(loss)(A, E, F)
    by_map = by_jvp_alone(lambda A: jnp.sum((G * jaxsvd.hermitian_map(jnp.exp, A)).real))(A, E, F)
    for got in found[0].values():
        np.testing.assert_allclose(got, by_map[0], rtol=1e-10)


# ---------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("name", ["eigh", "core_eigh", "truncated_eigh"])
def test_bad_matrices(name):
    function = {"truncated_eigh": lambda a: jaxsvd.truncated_eigh(a, 1)}.get(
        name, getattr(jaxsvd, name)
    )
    with pytest.raises(ValueError, match=rf"^{name}: `a` must have shape .*, got \(2, 3\)"):
        function(np.zeros((2, 3)))
    with pytest.raises(TypeError, match=f"^{name}: `?.*, got str"):
        function("text")


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"UPLO": "X"}, ValueError, "`UPLO` must be one of 'L', 'U', got str 'X'"),
        ({"symmetrize_input": 1}, TypeError, "`symmetrize_input` must be True or False, got int 1"),
        ({"fix_signs": None}, TypeError, "`fix_signs` must be True or False, got NoneType"),
        ({"degeneracy_tol": 2.0}, ValueError, "`degeneracy_tol` is relative .*, got 2.0"),
    ],
)
def test_bad_arguments(keywords, error, message):
    with pytest.raises(error, match=f"^eigh: {message}"):
        jaxsvd.eigh(np.eye(2), **keywords)
