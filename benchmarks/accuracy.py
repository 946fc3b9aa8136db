"""Whether a promised residual is kept, over spectra, tolerances, dtypes and a real sparse matrix.

python -m benchmarks.accuracy [--quick]
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

import jaxsvd

from .matrices import orthonormality, residual, spectra, term_document, with_spectrum
from .measure import Claim, Report, Row, first_call, main, medians

TOLERANCES = {"float32": (1e-3, 1e-4, 1e-5), "float64": (1e-3, 1e-4, 1e-5, 1e-6, 1e-12)}
DENSE = ((2000, 1500, 20), (400, 300, 8))  # m, n, k; full, then quick
DOCUMENTED = (("numpy", "scipy", "sklearn", "jax"), ("numpy",))
METHOD = "krylov"


def measured(case: str, a: Any, A: Any, k: int, tol: float) -> tuple[Row, list[Claim]]:
    """Return the row and the claims of one matrix at one tolerance."""

    def call():
        return jaxsvd.truncated_svd(A, k, method=METHOD, tol=tol, return_info=True)

    (result, info), _ = first_call(call)
    reached, off = residual(a, *result), orthonormality(result.U, result.Vh)
    rank = np.count_nonzero(result.S > 1e-6 * result.S[0])
    row = Row(
        case,
        f"{A.dtype}, tol={tol:g}",
        medians({"": call}, repeats=1, warm=0)[""],
        error=reached,
        note=f"{int(info.products) / k:.1f} k products, orthonormal to {off:.1f} eps sqrt(k)"
        + (f", rank {rank} of {k}" if rank < k else ""),
    )
    claims = [
        Claim(case, f"{row.name}: residual / s_1", reached, tol, at_least=False),
        Claim(case, f"{row.name}: |X^T X - I| / eps sqrt(k)", off, 10, at_least=False),
    ]
    return row, claims


def run(quick: bool) -> Report:
    """Return a row and two claims for each matrix, dtype and tolerance."""
    rows, claims = [], []

    def add(case, a, A, k, tolerances):
        for tol in tolerances:
            row, of_row = measured(case, a, A, k, tol)
            rows.append(row)
            claims.extend(of_row)

    m, n, k = DENSE[quick]
    with jax.enable_x64(True):
        for name, s in spectra(n, k).items():
            exact = with_spectrum(m, n, s, np.float64)
            for dtype, tolerances in TOLERANCES.items():
                a = exact.astype(dtype)
                add(f"{m} x {n}, {name}, k={k}", a, jnp.asarray(a), k, tolerances)
        try:
            real = term_document(DOCUMENTED[quick])
        except ImportError:
            return Report(rows, claims, "residual / s_1")
        case = f"term-document {real.shape[0]} x {real.shape[1]}, {real.nnz} nonzeros, k={k}"
        for dtype, tolerances in TOLERANCES.items():
            a = real.astype(dtype)
            add(case, a, sparse.BCSR.from_scipy_sparse(a), k, tolerances)
            add(f"{case}, BCOO", a, sparse.BCOO.from_scipy_sparse(a), k, tolerances[-1:])
    return Report(rows, claims, "residual / s_1")


if __name__ == "__main__":
    raise SystemExit(main("accuracy", run))
