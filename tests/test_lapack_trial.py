"""LAPACK's own trial, a representative part of it; all of it is in `benchmarks.trust`.

Each size is of one kind: empty, smaller than a block, a stack that goes to Jacobi by itself, wide,
and large enough for divide and conquer. All 18 kinds of matrix go through one program for each.
"""

import numpy as np
import pytest

from benchmarks.lapack import BAR, FUNCTIONS, KINDS, cases, modes, ratio, specimens
from benchmarks.trials import judge
from tests.helpers import COMPLEX64, COMPLEX128, FLOAT32, FLOAT64

CHOSEN = [
    pytest.param((0, 3), np.float32, id="0x3-float32", marks=pytest.mark.x32),
    pytest.param((3, 3), np.float32, id="3x3-float32", marks=pytest.mark.x32),
    pytest.param((3, 1), np.complex64, id="3x1-complex64", marks=pytest.mark.x32),
    pytest.param((10, 16), np.complex128, id="10x16-complex128"),
    pytest.param((40, 30), np.float64, id="40x30-float64"),
]


@pytest.mark.parametrize(("shape", "dtype"), CHOSEN)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_ratios(function, shape, dtype):
    row = judge(function, cases(function, (shape,), (dtype,)), BAR)
    assert row.cases >= len(KINDS) * len(modes(function, *shape))
    assert not row.failures


@pytest.mark.parametrize("dtype", [FLOAT32, COMPLEX64, FLOAT64, COMPLEX128])
def test_the_ratio_sees_an_error_of_a_hundred_eps(dtype):
    """NumPy's own factors pass, and each kind of damage to them does not."""
    eps = np.finfo(dtype).eps
    found = next(s for s in specimens(16, 10, dtype) if s.name == "even")
    wide = found.a.astype(np.complex128 if np.iscomplexobj(found.a) else np.float64)
    U, S, Vh = np.linalg.svd(wide, full_matrices=False)
    assert ratio(found.a, (U, S, Vh), found.S) < 5
    turned = U + 1000 * eps * U[:, ::-1]
    for damaged in (
        (turned, S, Vh),
        (U, S * (1 + 1000 * eps), Vh),
        (U, S[::-1], Vh),
        (U, -S, -Vh),
        (U[:, ::-1], S, Vh[::-1]),
        (U * np.nan, S, Vh),
    ):
        assert not ratio(found.a, damaged, found.S) < BAR
