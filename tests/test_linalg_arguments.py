"""jaxsvd.linalg on stacks, dtypes, empty matrices and NaN; bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import adjoint, assert_within, double, gaussian

import jaxsvd
from jaxsvd import linalg

# ------------------------------------------------------------------------------- batches and dtypes

CALLS = {  # name -> call with a matrix (..., 4, 3), a second one, and a vector (..., 4)
    "pinv": lambda a, b, w: linalg.pinv(a),
    "lstsq": lambda a, b, w: linalg.lstsq(a, b),
    "lstsq, a vector": lambda a, b, w: linalg.lstsq(a, w),
    "tls": lambda a, b, w: linalg.tls(a, w),
    "polar": lambda a, b, w: linalg.polar(a),
    "orthogonalize": lambda a, b, w: linalg.orthogonalize(a),
    "procrustes": lambda a, b, w: linalg.procrustes(a, b),
    "kabsch": lambda a, b, w: linalg.kabsch(a, b, w),
    "matrix_rank": lambda a, b, w: linalg.matrix_rank(a),
    "cond": lambda a, b, w: linalg.cond(a, "fro"),
    "orth": lambda a, b, w: linalg.orth(a),
    "null_space": lambda a, b, w: linalg.null_space(a.mT),
    "subspaces": lambda a, b, w: linalg.subspaces(a, rank=2),
    "principal_angles": lambda a, b, w: linalg.principal_angles(a[..., :2], b),
    "whitening": lambda a, b, w: linalg.whitening(a.mT @ a),
    "jordan_wielandt": lambda a, b, w: linalg.jordan_wielandt(a),
    "rayleigh_quotient": lambda a, b, w: linalg.rayleigh_quotient(a.mT, w, b[..., 0, :]),
    "optimal_rank": lambda a, b, w: linalg.optimal_rank(w, (4, 4)),
    "rank_for_energy": lambda a, b, w: linalg.rank_for_energy(w, 0.9),
}

# What answers NaN with NaN; ranks say -1.
COUNTS = ("matrix_rank", "optimal_rank", "rank_for_energy")


def arguments(leading=(), dtype=np.float64):
    a, b = (gaussian((*leading, 4, 3), dtype, seed) for seed in (1, 2))
    return a, b, np.abs(gaussian((*leading, 4), dtype, 3))


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_is_vmap_is_a_loop(name):
    function = CALLS[name]
    a, b, w = arguments((2,))
    a[1, 0, 0] = w[1, 0] = np.nan

    @jax.jit
    def ways(a, b, w):
        return function(a, b, w), jax.vmap(function)(a, b, w), function(a[0], b[0], w[0])

    for batch, mapped, alone in zip(*map(jax.tree.leaves, ways(a, b, w)), strict=True):
        np.testing.assert_allclose(batch, mapped, rtol=0, atol=1e-13)
        np.testing.assert_allclose(batch[0], alone, rtol=0, atol=1e-13)
        assert np.all(np.isfinite(alone))
        # NaN in a matrix reaches everything of that matrix and nothing else.
        if name in COUNTS:
            assert batch[1] == -1
        elif name != "jordan_wielandt" or batch.ndim == 2:
            assert np.all(np.isnan(batch[1]))


@pytest.mark.parametrize("name", ["lstsq", "polar", "kabsch", "orth", "whitening"])
def test_gradients_of_a_batch_are_those_of_a_loop(name):
    def loss(a, b, w):
        results = jax.tree.leaves(CALLS[name](a, b, w))
        return sum(jnp.sum((x @ x.mT if name == "orth" else x) ** 3) for x in results)

    @jax.jit
    def ways(a, b, w):
        alone = jax.grad(loss, (0, 1, 2))(a[0], b[0], w[0])
        return (
            jax.grad(loss, (0, 1, 2))(a, b, w),
            jax.vmap(jax.grad(loss, (0, 1, 2)))(a, b, w),
            alone,
        )

    for batch, mapped, alone in zip(*map(jax.tree.leaves, ways(*arguments((2,)))), strict=True):
        np.testing.assert_allclose(batch, mapped, rtol=0, atol=1e-12)
        np.testing.assert_allclose(batch[0], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lstsq", "polar", "kabsch", "whitening"])
def test_gradients_at_ties_in_single_precision(name):
    """All singular values equal; the same in double precision is tested along curves."""
    _, b, w = arguments()
    a = np.linalg.qr(gaussian((4, 3)) - 1)[0] * np.float64(2)

    @jax.jit
    def gradient(a, b, w):
        weights = jax.tree.map(
            lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), call(a, b, w)
        )
        return jax.grad(lambda a: sum(map(jnp.vdot, weights, call(a, b, w))))(a)

    def call(a, b, w):
        return jax.tree.leaves(CALLS[name](a, b, w))

    single = gradient(*(x.astype(np.float32) for x in (a, b, w)))
    assert single.dtype == np.float32
    assert_within(single, np.asarray(gradient(a, b, w)), 200)


@pytest.mark.parametrize("name", CALLS)
def test_dtypes_and_leading_axes(name):
    def results(leading, dtype):
        shapes = [(*leading, *size) for size in ((4, 3), (4, 3), (4,))]
        given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        return jax.tree.leaves(jax.eval_shape(CALLS[name], *given))

    alone = results((), np.float64)
    for leading in ((0,), (2, 5)):
        assert [x.shape for x in results(leading, np.float64)] == [leading + x.shape for x in alone]
    for given, wanted in ((jnp.bfloat16, jnp.bfloat16), (np.float32, np.float32)):
        assert {x.dtype for x in results((), given)} <= {np.dtype(wanted), np.dtype(np.int32)}
    integers = {x.dtype for x in results((), np.int32)}
    assert all(jnp.issubdtype(d, jnp.floating) or d == np.int32 for d in integers)


def test_two_dtypes_give_the_wider_one():
    a, b, _ = arguments()
    x = linalg.lstsq(a.astype(np.float32), b.astype(np.complex128))
    assert x.dtype == np.complex128
    np.testing.assert_allclose(x, np.linalg.pinv(double(a.astype(np.float32))) @ b, atol=1e-14)


@pytest.mark.parametrize("m", [0, 3])
def test_empty_matrices(m):
    a = jnp.zeros((m, 3 - m))
    assert linalg.pinv(a).shape == (3 - m, m)
    assert linalg.lstsq(a, jnp.ones((m, 2))).shape == (3 - m, 2)
    assert [x.shape for x in linalg.polar(a)] == [(m, 3 - m), (3 - m, 3 - m)]
    spaces = linalg.subspaces(a)
    assert [x.shape for x in spaces] == [(m, 0), (3 - m, 3 - m), (3 - m, 0), (m, m)]
    N = double(spaces.left_null)
    np.testing.assert_array_equal(N @ adjoint(N), np.eye(m))
    assert linalg.principal_angles(a.mT, a.mT).shape == (0,)
    assert linalg.whitening(jnp.zeros((0, 0))).shape == (0, 0)
    assert linalg.jordan_wielandt(a).eigenvalues.shape == (3,)
    assert linalg.tls(jnp.zeros((3, 0)), jnp.ones(3)).shape == (0,)


# ---------------------------------------------------------------------------------------- bad input

A = jnp.ones((4, 3))
B = jnp.ones((4, 2))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: linalg.pinv([1.0]), TypeError, "pinv: `a` must be an array, got list"),
        (lambda: linalg.pinv(A[0]), ValueError, r"pinv: `a` must have shape \(..., m, n\), got"),
        (lambda: linalg.pinv(A, 2.0), ValueError, "pinv: `rtol` 0 <= rtol < 1, got 2.0"),
        (lambda: linalg.pinv(A, A), TypeError, "pinv: `rtol` Python float, got"),
        (lambda: linalg.lstsq(A, B[:3]), ValueError, r"lstsq: `b` \(4,\) \(4, 'd'\) got \(3, 2\)"),
        (lambda: linalg.lstsq(A, A[:, :, None]), ValueError, r"lstsq: `b` got \(4, 3, 1\)"),
        (lambda: linalg.lstsq(A[None], A[:, 0]), ValueError, r"lstsq: `b` got \(4,\)"),
        (lambda: linalg.tls(A.mT, A[:3]), ValueError, r"tls: `a` m >= n, got \(3, 4\)"),
        (lambda: linalg.tls(A, None), TypeError, "tls: `b` must be an array, got NoneType"),
        (lambda: linalg.polar(A, "up"), ValueError, "polar: `side` 'right', 'left', got str 'up'"),
        (lambda: linalg.procrustes(A, B), ValueError, r"procrustes: `b` \(4, 3\), got \(4, 2\)"),
        (lambda: linalg.kabsch(A, B), ValueError, r"kabsch: `Q` shape of `P`, \(4, 3\), got"),
        (
            lambda: linalg.kabsch(A.astype(complex), A),
            TypeError,
            "kabsch: `P` must be real, got dtype complex",
        ),
        (lambda: linalg.kabsch(A[:0], A[:0]), ValueError, r"kabsch: `P` N, d >= 1, got \(0, 3\)"),
        (lambda: linalg.kabsch(A, A, A), ValueError, r"kabsch: `weights` \(4,\) got \(4, 3\)"),
        (lambda: linalg.matrix_rank(A, -1.0), ValueError, "matrix_rank: `rtol` got -1.0"),
        (lambda: linalg.cond(A, 1), ValueError, "cond: `p` None, 2, -2, 'fro', got int 1"),
        (
            lambda: linalg.cond(A[:0]),
            ValueError,
            r"cond: `a` must not be empty, got shape \(0, 3\)",
        ),
        (lambda: linalg.orth(A, rank=4), ValueError, "orth: `rank` 0 <= rank <= 3, got 4"),
        (lambda: linalg.null_space(A, rank=1.5), TypeError, "null_space: `rank` an int, got float"),
        (lambda: linalg.subspaces(A, "x"), TypeError, "subspaces: `rtol` float, got str 'x'"),
        (
            lambda: linalg.principal_angles(A, A[:3]),
            ValueError,
            r"principal_angles: `b` got \(3, 3\)",
        ),
        (lambda: linalg.whitening(A), ValueError, r"whitening: `cov` \(..., n, n\), got \(4, 3\)"),
        (lambda: linalg.whitening(A[:3], "x"), ValueError, "whitening: `kind` 'zca', got str 'x'"),
        (lambda: linalg.jordan_wielandt("x"), TypeError, "jordan_wielandt: `a` got str 'x'"),
        (lambda: linalg.rayleigh_quotient(A, A[0]), ValueError, r"rayleigh_quotient: `a` n, n got"),
        (lambda: linalg.rayleigh_quotient(A, A), ValueError, "rayleigh_quotient: got"),
        (
            lambda: linalg.rayleigh_quotient(A, A[0], A[0]),
            ValueError,
            r"rayleigh_quotient: `u` got",
        ),
        (
            lambda: linalg.optimal_rank(A[0], 3),
            TypeError,
            r"optimal_rank: `shape` pair \(m, n\), got int 3",
        ),
        (lambda: linalg.optimal_rank(A[0], (3, 0)), ValueError, "optimal_rank: `shape` 1 <= got 0"),
        (lambda: linalg.optimal_rank(A[0], (5, 4)), ValueError, "optimal_rank: `s` = 4 got 3"),
        (lambda: linalg.optimal_rank(A[0], (3, 3), A), ValueError, "optimal_rank: `noise` got"),
        (
            lambda: linalg.optimal_rank(A[0].astype(complex), (3, 3)),
            TypeError,
            "optimal_rank: `s` real, got",
        ),
        (lambda: linalg.rank_for_energy(A, 1.5), ValueError, "rank_for_energy: `energy` got 1.5"),
        (
            lambda: linalg.rank_for_energy(A, "x"),
            TypeError,
            "rank_for_energy: `energy` got str 'x'",
        ),
        (
            lambda: linalg.rank_for_energy(A[0, 0], 1),
            ValueError,
            "rank_for_energy: `s` got a scalar",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, error, sentence):
    pattern = re.compile(r"^linalg\." + sentence.replace(" ", ".* ?"))
    for attempt in (call, lambda: jax.eval_shape(lambda _: call(), A)):
        with pytest.raises(error) as caught:
            attempt()
        message = str(caught.value)
        assert pattern.search(message), message
        assert "\n" not in message
        assert "got" in message


def test_every_name_is_exported_and_documented():
    for name in dir(linalg):
        value = getattr(linalg, name)
        if not name.startswith("_") and callable(value):
            assert value.__doc__
    assert jaxsvd.linalg is linalg
