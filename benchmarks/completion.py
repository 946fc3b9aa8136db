"""Matrix completion: the table of Cai, Candes and Shen, and a matrix that is never formed.

    python -m benchmarks.completion [--quick]

Their table 5.1: matrices M = L R^T with Gaussian factors, a share of whose entries is seen. Beside
each figure of ours stands theirs (MATLAB, a desktop of 2008: their seconds say how the work grows,
no more). Soft-impute: a noisy problem solved to the fixed point, and its gradient by the weight.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from jaxsvd.models import completion
from jaxsvd.operators import Sparse

from .measure import Claim, Report, Row, first_call, main, medians

# n, rank, share of entries; their relative error, iterations and seconds.
TABLE = [
    (1000, 10, 0.12, 1.64e-4, 117, 23),
    (1000, 50, 0.39, 1.59e-4, 114, 196),
    (1000, 100, 0.57, 1.68e-4, 129, 501),
    (5000, 10, 0.024, 1.73e-4, 123, 147),
]


def problem(n: int, rank: int, share: float, noise: float = 0.0, dtype=np.float32):
    """Return both factors in double precision and the entries seen."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, n, rank))
    place = np.sort(rng.choice(n * n, int(share * n * n), replace=False))
    rows, columns = np.divmod(place, n)
    values = np.einsum("ij,ij->i", left[rows], right[columns])
    values = (values + noise * rng.standard_normal(values.size)).astype(dtype)
    indices = np.stack([rows, columns], 1).astype(np.int32)
    return left, right, sparse.BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=(n, n))


def relative_error(left, right, found) -> float:
    """Return |X - L R^T|_F / |L R^T|_F from the factors, in double precision."""
    U, s, Vh = (np.asarray(x, np.float64) for x in (found.U, found.s, found.Vh))
    first = np.linalg.qr(np.hstack([U * s, -left]), "r")
    second = np.linalg.qr(np.hstack([Vh.T, right]), "r")
    size = np.sum((left.T @ left) * (right.T @ right)) ** 0.5
    return float(np.linalg.norm(first @ second.T) / size)


def table(quick: bool) -> tuple[list[Row], list[Claim]]:
    rows, claims = [], []
    for n, rank, share, error, iterations, seconds in TABLE[:1] if quick else TABLE:
        left, right, a = problem(n, rank, share)
        A = Sparse.from_matrix(a)
        call = lambda A=A, rank=rank: completion.singular_value_thresholding(  # noqa: E731
            A, rank + 5, return_info=True
        )
        (found, info), first = first_call(call)
        spent = medians({"ours": call}, repeats=1 if rank > 10 else 3, warm=0)["ours"]
        case = f"n = {n}, rank {rank}, {100 * share:g} % of the entries"
        ours = relative_error(left, right, found)
        steps = int(info.iterations)
        rows.append(
            Row(case, "jaxsvd", spent, first - spent, error=ours, note=f"{steps} iterations")
        )
        note = f"{iterations} iterations"
        rows.append(Row(case, "Cai, Candes, Shen 2010", seconds, error=error, note=note))
        claims.append(Claim(case, "relative error, at most theirs", ours, error, False))
    return rows, claims


def soft(quick: bool) -> tuple[list[Row], list[Claim]]:
    n, rank, share = (300, 5, 0.3) if quick else (1000, 10, 0.2)
    left, right, a = problem(n, rank, share, noise=0.5)
    A = Sparse.from_matrix(a)
    # Above the noise, whose largest singular value is 0.5 (2 sqrt(n share)).
    weight = 0.75 * 2 * (n * share) ** 0.5
    solve = lambda: completion.soft_impute(A, weight, 2 * rank, return_info=True)  # noqa: E731
    norm = jax.jit(jax.grad(lambda w: jnp.sum(completion.soft_impute(A, w, 2 * rank).s ** 2)))
    (found, info), first = first_call(solve)
    slope, first_slope = first_call(lambda: norm(weight))
    seconds = medians(
        {"soft_impute": solve, "gradient by the weight": lambda: norm(weight)}, repeats=3, warm=0
    )
    case = f"soft-impute, n = {n}, rank {rank}, noise 0.5, weight {weight:.1f}"
    error = relative_error(left, right, found)
    steps = f"{int(info.iterations)} iterations, rank {int(info.rank)}"
    step = 1e-2 * weight
    both = [completion.soft_impute(A, w, 2 * rank).s for w in (weight + step, weight - step)]
    difference = float(jnp.sum(both[0] ** 2) - jnp.sum(both[1] ** 2)) / (2 * step)
    off = abs(float(slope) / difference - 1)
    alone, gradient = seconds.values()
    rows = [
        Row(case, "soft_impute (jaxsvd)", alone, first - alone, error=error, note=steps),
        Row(case, "with its gradient (jaxsvd)", gradient, first_slope - gradient, error=off),
    ]
    fixed = float(info.error)
    return rows, [
        Claim(case, "distance to the fixed point", fixed, 1e-5, False),
        Claim(case, "gradient against differences (float32)", off, 1e-2, False),
    ]


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    rows, claims = [], []
    for part in (table, soft):
        found = part(quick)
        rows += found[0]
        claims += found[1]
    return Report(rows, claims, "relative error; of a gradient that against differences")


if __name__ == "__main__":
    raise SystemExit(main("completion", run))
