"""Bad input raises at trace time, in one sentence.

It names the function, the argument, what came and what is wanted. Every call is made twice, plainly
and while `jax.jit` traces; nothing is compiled.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jaxsvd
from jaxsvd import _checks

pytestmark = pytest.mark.x32

A = jnp.ones((4, 3), jnp.float32)
C = jnp.eye(3, dtype=jnp.float32)

FUNCTIONS = {
    "svd": jaxsvd.svd,
    "svdvals": jaxsvd.svdvals,
    "core_svd": jaxsvd.core_svd,
    "low_rank": lambda a: jaxsvd.low_rank(a, 1),
    "spectral_map": lambda a: jaxsvd.spectral_map(jnp.tanh, a),
    "spectral_sum": lambda a: jaxsvd.spectral_sum(jnp.tanh, a),
    "core_map": lambda C: jaxsvd.core_map(jnp.tanh, C),
}


def assert_refused(call, error: type[Exception], sentence: str) -> None:
    """Assert that call() raises the error with a sentence that matches, under jit as well.

    A space in the pattern stands for any text, so that patterns read as what must be named.
    """
    pattern = re.compile("^" + sentence.replace(" ", ".* ?"))
    for attempt in (call, lambda: jax.eval_shape(lambda _: call(), A)):
        with pytest.raises(error) as caught:
            attempt()
        message = str(caught.value)
        assert pattern.search(message), message
        assert "\n" not in message
        assert "got" in message


# ------------------------------------------------------------------------------- the matrix


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("value", "error", "came"),
    [
        ("text", TypeError, "must be an array, got str 'text'"),
        ([[1.0, 2.0], [3.0, 4.0]], TypeError, "must be an array, got list"),
        (((1.0, 2.0), (3.0, 4.0)), TypeError, "must be an array, got tuple"),
        (None, TypeError, "must be an array, got NoneType"),
        (3.0, TypeError, "must be an array, got float 3.0"),
        (np.array([["a", "b"]]), TypeError, "must hold numbers, got dtype <U1"),
        (np.array([[None]]), TypeError, "must hold numbers, got dtype object"),
        (A[0, 0], ValueError, r"must have shape \(..., m, n\), got 0-d shape \(\)"),
        (A[0], ValueError, r"must have shape \(..., m, n\), got 1-d shape \(3,\)"),
    ],
    ids=[
        "str",
        "list",
        "tuple",
        "None",
        "float",
        "text array",
        "object array",
        "0-d",
        "1-d",
    ],
)
def test_matrix(name, value, error, came):
    argument = "C" if name == "core_map" else "a"
    assert_refused(lambda: FUNCTIONS[name](value), error, f"{name}: `{argument}` {came}")


@pytest.mark.parametrize("name", ["svd", "svdvals", "spectral_map", "spectral_sum"])
def test_sparse_matrix(name):
    sparse = BCOO.fromdense(A)
    sentence = f"{name}: `a` must be an array, got BCOO of shape"
    assert_refused(lambda: FUNCTIONS[name](sparse), TypeError, sentence)


def test_square_matrix():
    wanted = r"must have shape \(..., n, n\), got \(4, 3\)"
    assert_refused(lambda: jaxsvd.svd(A, hermitian=True), ValueError, f"svd: `a` {wanted}")
    assert_refused(lambda: jaxsvd.core_map(jnp.tanh, A), ValueError, f"core_map: `C` {wanted}")


# -------------------------------------------------------------------------------- keywords


SIZES = [
    (0, ValueError, "must satisfy 1 <= k <= 3, got 0"),
    (-1, ValueError, "must satisfy 1 <= k <= 3, got -1"),
    (4, ValueError, "must satisfy 1 <= k <= 3, got 4"),
    (True, TypeError, "must be an int, got bool True"),
    (2.0, TypeError, "must be an int, got float 2.0"),
    ("2", TypeError, "must be an int, got str '2'"),
    ([2], TypeError, "must be an int, got list"),
    (np.array([2]), TypeError, "must be an int, got ndarray of shape"),
]


@pytest.mark.parametrize("name", ["core_svd", "low_rank"])
@pytest.mark.parametrize(("k", "error", "came"), SIZES, ids=[repr(row[0]) for row in SIZES])
def test_k(name, k, error, came):
    assert_refused(lambda: getattr(jaxsvd, name)(A, k), error, f"{name}: `k` {came}")


@pytest.mark.parametrize("name", ["core_svd", "low_rank"])
def test_traced_k(name):
    with pytest.raises(TypeError, match=f"^{name}: `k` must be a Python int known at trace time"):
        jax.jit(getattr(jaxsvd, name))(A, 2)


KEYWORDS = [
    ({"full_matrices": 1}, TypeError, "`full_matrices` True or False, got int 1"),
    ({"full_matrices": None}, TypeError, "`full_matrices` True or False, got NoneType"),
    ({"compute_uv": "no"}, TypeError, "`compute_uv` True or False, got str 'no'"),
    ({"hermitian": 0}, TypeError, "`hermitian` True or False, got int 0"),
    ({"fix_signs": 2}, TypeError, "`fix_signs` True or False, got int 2"),
    ({"method": "fast"}, ValueError, "`method` one of 'auto', 'lapack' got str 'fast'"),
    ({"method": None}, ValueError, "`method` one of 'auto', 'lapack' got NoneType"),
    ({"degeneracy_tol": "x"}, TypeError, "`degeneracy_tol` None or a float, got str 'x'"),
    ({"degeneracy_tol": A[0, 0]}, TypeError, "`degeneracy_tol` None or a float, got"),
    ({"degeneracy_tol": True}, TypeError, "`degeneracy_tol` None or a float, got bool"),
    ({"degeneracy_tol": -0.1}, ValueError, "`degeneracy_tol` 0 <= .* < 1, got -0.1"),
    ({"degeneracy_tol": 1.5}, ValueError, "`degeneracy_tol` 0 <= .* < 1, got 1.5"),
    ({"degeneracy_tol": math.nan}, ValueError, "`degeneracy_tol` 0 <= .* < 1, got nan"),
    ({"result_dtype": "int32"}, (TypeError, ValueError), "`result_dtype` got int32"),
    ({"result_dtype": "text"}, (TypeError, ValueError), "`result_dtype` got str 'text'"),
    ({"result_dtype": 3}, (TypeError, ValueError), "`result_dtype` got int 3"),
]


@pytest.mark.parametrize(
    ("keywords", "error", "sentence"), KEYWORDS, ids=[str(row[0]) for row in KEYWORDS]
)
def test_keywords_of_svd(keywords, error, sentence):
    assert_refused(lambda: jaxsvd.svd(A, **keywords), error, f"svd: {sentence}")


def test_real_result_of_a_complex_matrix():
    assert_refused(
        lambda: jaxsvd.svd(A.astype(jnp.complex64), result_dtype="float32"),
        (TypeError, ValueError),
        "svd: `result_dtype` got float32",
    )


SUBSETS = [
    ((0, 4), ValueError, "4"),
    ((2, 2), ValueError, "2"),
    ((2, 1), ValueError, "1"),
    ((-1, 2), ValueError, "-1"),
    ((0.0, 2), TypeError, "float 0.0"),
    ((True, 2), TypeError, "bool True"),
    ((0,), TypeError, "tuple"),
    ((0, 1, 2), TypeError, "tuple"),
    (3, TypeError, "int 3"),
    ("ab", TypeError, "str 'ab'"),
    (slice(0, 2), TypeError, "slice"),
]


@pytest.mark.parametrize(("subset", "error", "came"), SUBSETS, ids=[str(row[0]) for row in SUBSETS])
def test_subset_by_index(subset, error, came):
    sentence = f"svd: `subset_by_index` got {came}"
    assert_refused(lambda: jaxsvd.svd(A, False, subset_by_index=subset), error, sentence)
    assert_refused(lambda: jaxsvd.svd(A, compute_uv=False, subset_by_index=subset), error, sentence)


def test_subset_of_full_matrices():
    assert_refused(
        lambda: jaxsvd.svd(A, subset_by_index=(0, 1)),
        ValueError,
        "svd: `subset_by_index` full_matrices=False, got True",
    )


def test_traced_keywords():
    with pytest.raises(TypeError, match=r"^svd: `full_matrices` must be True or False, got "):
        jax.jit(jaxsvd.svd)(A, True)
    with pytest.raises(TypeError, match=r"^svd: `degeneracy_tol` must be None or a Python float"):
        jax.jit(lambda a, tol: jaxsvd.svd(a, degeneracy_tol=tol))(A, 0.1)


def test_method_of_core_svd():
    assert_refused(
        lambda: jaxsvd.core_svd(A, 2, method="lapack"),
        ValueError,
        "core_svd: `method` must be one of 'auto', got str 'lapack'",
    )


# ----------------------------------------------------------------- functions of the spectrum

OF_F = {
    "spectral_map": lambda f: jaxsvd.spectral_map(f, A),
    "spectral_sum": lambda f: jaxsvd.spectral_sum(f, A),
    "core_map": lambda f: jaxsvd.core_map(f, C),
}

NOT_ELEMENTWISE = {
    "softmax": jax.nn.softmax,
    "cumsum": jnp.cumsum,
    "sort": jnp.sort,
    "sum": jnp.sum,
    "divided by the sum": lambda s: s / s.sum(),
    "divided by the largest": lambda s: s / jnp.max(s),
    "reversed": lambda s: s[::-1],
    "first entry changed": lambda s: s.at[0].set(0),
    "new axis": lambda s: s[None],
    "fixed shape": lambda s: jnp.ones(3, s.dtype),
    "depends on the shape": lambda s: s if s.ndim == 0 else s * s.shape[0],
    "concatenated": lambda s: s if s.ndim == 0 else jnp.concatenate([s, s]),
    "pair": lambda s: (s, s),
    "None": lambda s: None,
    "two arguments": lambda s, t: s * t,
}

WRONG_DTYPE = {
    "complex64": lambda s: jax.lax.complex(s, s),
    "float16": lambda s: s.astype(jnp.float16),
    "int32": lambda s: s.astype(jnp.int32),
    "bool": lambda s: s > 0.5,
}

NOT_TRACEABLE = {
    "math.sin": lambda s: math.sin(s),
    "NumPy": np.tanh,
    "if": lambda s: s if s > 0 else -s,
}


@pytest.mark.parametrize("name", OF_F)
@pytest.mark.parametrize(
    ("value", "came"), [(None, "NoneType None"), ("tanh", "str 'tanh'"), (2.0, "float 2.0")]
)
def test_f_is_not_a_function(name, value, came):
    assert_refused(
        lambda: OF_F[name](value), TypeError, f"{name}: `f` must be a function, got {came}"
    )


@pytest.mark.parametrize("name", OF_F)
@pytest.mark.parametrize("kind", NOT_ELEMENTWISE)
def test_f_is_not_elementwise(name, kind):
    assert_refused(
        lambda: OF_F[name](NOT_ELEMENTWISE[kind]),
        (TypeError, ValueError),
        f"{name}: `f` must act elementwise",
    )


@pytest.mark.parametrize("name", OF_F)
@pytest.mark.parametrize("came", WRONG_DTYPE)
def test_f_changes_the_dtype(name, came):
    assert_refused(
        lambda: OF_F[name](WRONG_DTYPE[came]),
        TypeError,
        f"{name}: `f` must return the dtype it is given, float32, got {came}",
    )


@pytest.mark.parametrize("kind", NOT_TRACEABLE)
def test_f_is_not_traceable(kind):
    assert_refused(
        lambda: OF_F["spectral_map"](NOT_TRACEABLE[kind]), TypeError, "spectral_map: `f` got"
    )


def test_f_closes_over_a_complex_array():
    factor = jnp.array([1j], jnp.complex64)
    assert_refused(
        lambda: jaxsvd.spectral_map(lambda s: s * factor[0].real, A),
        TypeError,
        "spectral_map: `f` must close over real numbers, got a complex array",
    )


def test_f_that_is_not_elementwise_in_what_it_closes_over():
    def mapped(a, t):
        return jaxsvd.spectral_map(lambda s: s * t / jnp.sum(s), a)

    with pytest.raises(ValueError, match=r"^spectral_map: `f` must act elementwise"):
        jax.eval_shape(mapped, A, jnp.float32(2))


@pytest.mark.parametrize("name", OF_F)
def test_near_tie(name):
    function, matrix = getattr(jaxsvd, name), C

    def with_near_tie(value):
        return lambda: function(jnp.tanh, matrix, near_tie=value)

    assert_refused(with_near_tie("x"), TypeError, f"{name}: `near_tie` a float, got str 'x'")
    assert_refused(with_near_tie(2), ValueError, f"{name}: `near_tie` 0 <= near_tie < 1, got 2")
    with pytest.raises(ValueError, match="near_tie") as caught:
        with_near_tie(2)()
    assert "largest singular value" not in str(caught.value)  # it is relative to the pair


@pytest.mark.parametrize(("name", "order"), [("spectral_map", 3), ("spectral_sum", 4)])
def test_derivatives_of_too_high_an_order(name, order):
    function = FUNCTIONS[name]
    for _ in range(order):
        function = jax.jacfwd(function)
    with pytest.raises(ValueError, match=f"^{name}: derivatives up to the .* order exist, got "):
        jax.eval_shape(function, C)


def test_a_description_is_one_line():
    text = _checks.describe({"a": np.zeros((3, 3)), "b": "two\nlines"})
    assert text.splitlines() == [text]
    assert len(text) < 60
