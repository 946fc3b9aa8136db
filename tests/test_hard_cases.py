"""Matrices that are hard by name, a part of `benchmarks.trust`; what LAPACK does not survive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsvd
from benchmarks.hard import (
    FAILED_ON,
    TALL,
    cases,
    denormal,
    divide_and_conquer,
    equal_values,
    flat_spectra,
    graded_columns,
    not_finite,
)
from benchmarks.lapack import BAR, ratio
from benchmarks.trials import judge
from jaxsvd.algorithms.dense import rescued
from jaxsvd.algorithms.orthonormal import noise, orthonormalize
from jaxsvd.algorithms.tall import tall
from tests.helpers import (
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    double,
    eps,
    gaussian,
    with_values,
)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize(
    ("function", "group"),
    [
        ("svd", "square"),
        ("svdvals", "square"),
        ("svd by Jacobi", "square"),
        ("svd", "tall"),
        ("core_svd", "wide"),
        ("truncated_svd, k=1", "tall"),
        ("truncated_svd, k=min(m, n)", "row"),
        ("svd", "column"),
    ],
)
def test_matrices_by_name(function, group, dtype):
    assert not judge(function, cases(function, group, dtype), BAR).failures


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("function", ["svd", "svd by Jacobi", "svdvals", "truncated_svd"])
def test_one_nan_or_infinity_stays_with_its_matrix(function, dtype):
    assert not judge(function, not_finite(function, dtype), BAR).failures


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_denormal_numbers(dtype):
    assert not judge("svd", denormal("svd", dtype), BAR).failures


def test_jacobi_keeps_the_digits_of_graded_columns():
    assert not judge("Jacobi", graded_columns(), BAR).failures


@pytest.mark.x32
def test_flat_spectra_come_out_right_or_flagged():
    assert not judge("flat", flat_spectra(), BAR).failures


# ------------------------------------------------------------ where divide and conquer fails


def test_values_equal_to_rounding():
    seeds = tuple(case for case in FAILED_ON if case[1] == 150)
    assert not judge("svd", divide_and_conquer(seeds), BAR).failures


@pytest.mark.x32
def test_values_equal_to_rounding_in_single_precision():
    seeds = tuple(case for case in FAILED_ON if case[2] is np.float32 and case[1] == 150)
    assert not judge("svd", divide_and_conquer(seeds), BAR).failures
    a = equal_values(*seeds[0])
    gradient = jax.grad(lambda a: jnp.sum(jaxsvd.svd(a).S))(jnp.asarray(a))
    np.testing.assert_allclose(gradient, a, atol=1e-4)  # U V^H of what is nearly orthogonal


def by_default(a):
    return jnp.linalg.svd(a, full_matrices=False)


FAILURES = {
    "does not converge": lambda U, S, Vh: (U * jnp.nan, S * jnp.nan, Vh * jnp.nan),
    "not orthogonal": lambda U, S, Vh: (U.at[..., 0].set(U[..., 1]), S, Vh),
    "right vectors not orthogonal": lambda U, S, Vh: (U, S, Vh.at[..., -1, 3].add(1e-3)),
    "values not finite": lambda U, S, Vh: (U, S.at[..., 2].set(jnp.nan), Vh),
}


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX128])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_solver_that_fails_is_followed_by_another(failure, dtype):
    """Only the matrices that it failed on are taken from the other."""
    a = jnp.asarray(gaussian((3, *TALL), dtype))
    right = by_default(a)

    wrong = FAILURES[failure](*right)
    at = jnp.arange(3) == 1  # the second matrix
    first = jaxsvd.SVDResult(
        *(
            jnp.where(at.reshape(3, *[1] * (x.ndim - 1)), y, x)
            for x, y in zip(right, wrong, strict=True)
        )
    )

    def second(a):
        U, S, Vh = by_default(a)
        return -U, S, -Vh

    U, S, Vh = rescued(a, first, second, doubt=lambda S: jnp.full(S.shape[:-1], True))
    assert_same_bits((U[::2], S, Vh[::2]), (right[0][::2], right[1], right[2][::2]))
    assert_same_bits((U[1], Vh[1]), (-right[0][1], -right[2][1]))


@pytest.mark.x32
def test_no_solver_is_asked_twice_about_nan():
    a = jnp.full((30, 30), jnp.nan, jnp.float32)
    zeros = jax.tree.map(jnp.zeros_like, by_default(a))
    result = rescued(a, jaxsvd.SVDResult(*by_default(a)), lambda a: zeros)
    assert all(bool(jnp.all(jnp.isnan(x))) for x in result)


# ---------------------------------------------------------------------- CholeskyQR breakers


def breakers(dtype) -> dict[str, np.ndarray]:
    """Blocks (300, 12) of columns from which a Gram matrix keeps nothing."""
    unit, m, l = eps(dtype), 300, 12
    ordinary = gaussian((m, l), np.float64)
    lauchli = np.vstack([np.ones((1, l)), unit**0.5 / 10 * np.eye(l), np.zeros((m - l - 1, l))])
    return {
        "condition 1/eps": with_values(np.geomspace(1, unit, l), m, l),
        "condition beyond": with_values(np.geomspace(1, unit**2, l), m, l),
        "Lauchli": lauchli,
        "duplicated": np.repeat(ordinary[:, :3], 4, axis=1) / 20,
        "all equal": np.full((m, l), 0.1),
        "zero columns": ordinary * (np.arange(l) % 3 == 0) / 20,
        "graded columns": ordinary * 10.0 ** (-3 * np.arange(l)),
        "zero": np.zeros((m, l)),
        "Hilbert": 1 / (np.arange(m)[:, None] + np.arange(l) + 1.0),
    }


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_cholesky_qr(dtype):
    """Orthonormal to rounding, and the columns lie in the span."""
    program = jax.jit(lambda X: orthonormalize(X, fill=noise(*X.shape, X.dtype)))
    factored = jax.jit(lambda X: tall(X, lambda R: jaxsvd.svd(R, full_matrices=False)))
    for name, block in breakers(dtype).items():
        X = block.astype(dtype)
        Q = double(program(X))
        unit = 20 * X.shape[1] * eps(dtype)
        assert np.abs(Q.T @ Q - np.eye(X.shape[1])).max() < unit, name
        rest = double(X) - Q @ (Q.T @ double(X))
        assert np.linalg.norm(rest) <= unit * np.linalg.norm(double(X)), name
        assert ratio(X, factored(X), None) < BAR, name
