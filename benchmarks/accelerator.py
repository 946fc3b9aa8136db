"""What an accelerator is for: one large matrix, a million small ones, a thousand between.

    python -m benchmarks.accelerator [--quick]

Against jnp.linalg, torch where it is installed and sees the same device, and the limits: the
products inside a randomized SVD run alone, and one pass over the memory that a batch fills. On a
machine with nothing but a CPU the suite has no rows.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxsvd
from jaxsvd.algorithms.products import adjoint_product, product

from .batched import OURS, THEIRS, gradient, residual, thin
from .measure import Claim, Report, Row, main, timed

# Sizes, full and quick.
LARGE = ((16384, 100), (256, 8))
SQUARE = ((1024, 4096), (96,))
COUNTS = ((1_000_000, 1024), (256, 16))
TALL = ((100_000, 64), (2000, 24))
OVERSAMPLING, POWER_ITERATIONS = 10, 2


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def torch_calls(a: jax.Array, columns: int) -> dict[str, Callable]:
    """Return torch.svd_lowrank on the device of a, if torch is there and sees it."""
    try:
        import torch

        shared = torch.utils.dlpack.from_dlpack(a)
    except Exception:  # whatever keeps torch from the device, the others can still be measured
        return {}

    def call():
        U, S, V = torch.svd_lowrank(shared, columns, niter=POWER_ITERATIONS)
        if shared.is_cuda:
            torch.cuda.synchronize()
        return tuple(map(jax.dlpack.from_dlpack, (U, S, V.T.contiguous())))

    return {"torch.svd_lowrank": call}


def both_residuals(a: jax.Array, k: int, result: Any) -> float | None:
    """Return the largest residual of k triplets on either side, over s_1."""
    if len(result) != 3:
        return None
    U, S, Vh = result[0][:, :k], result[1][:k], result[2][:k]
    right, left = product(a, Vh.T) - U * S, adjoint_product(a, U) - Vh.T * S
    worst = jnp.maximum(*(jnp.max(jnp.linalg.norm(x, axis=0)) for x in (right, left)))
    return float(worst / S[0])


def sketched(n: int, k: int, repeats: int) -> tuple[list[Row], list[Claim]]:
    case, l = f"randomized {n}^2, k={k}, {POWER_ITERATIONS} power iterations", k + OVERSAMPLING
    key = jax.random.key(1)
    s = jnp.arange(1, 4 * k + 1, dtype=jnp.float32) ** -0.5
    a = product(normal(n, 4 * k) * s, normal(4 * k, n)) / n + 1e-3 * normal(n, n) / n**0.5
    ours = jax.jit(
        functools.partial(
            jaxsvd.randomized_svd,
            k=k,
            oversampling=OVERSAMPLING,
            power_iterations=POWER_ITERATIONS,
        )
    )

    @jax.jit
    def alone(a, x):
        for _ in range(POWER_ITERATIONS + 1):
            x = adjoint_product(a, product(a, x))
        return x

    x = normal(n, l)
    products = f"its {2 * POWER_ITERATIONS + 2} products"
    torch = torch_calls(a, l)
    calls = {"jaxsvd.randomized_svd": lambda: ours(key, a), products: lambda: alone(a, x), **torch}
    rows = timed(case, calls, functools.partial(both_residuals, a, k), repeats)
    seconds = {row.name: row.seconds for row in rows}
    ours_s = seconds["jaxsvd.randomized_svd"]
    claims = [Claim(case, "ours / its products", ours_s / seconds[products], 2, at_least=False)]
    claims += [Claim(case, f"{name} / ours", seconds[name] / ours_s, 5) for name in torch]
    return rows, claims


def against_jnp(
    case: str, a: jax.Array, bar: float, repeats: int, rest: dict[str, Callable] | None = None
) -> tuple[list[Row], list[Claim]]:
    ours, theirs = jax.jit(thin(jaxsvd.svd)), jax.jit(thin(jnp.linalg.svd))
    calls = {OURS: lambda: ours(a), THEIRS: lambda: theirs(a), **(rest or {})}
    rows = timed(case, calls, functools.partial(residual, a), repeats)
    seconds = {row.name: row.seconds for row in rows}
    return rows, [Claim(case, f"{THEIRS} / ours", seconds[THEIRS] / seconds[OURS], bar)]


def small(count: int, n: int, repeats: int) -> tuple[list[Row], list[Claim]]:
    case, a, w = f"{count:,} of {n} x {n}", normal(count, n, n), normal(count, n, n)
    once = jax.jit(lambda a: (a + 1, a - 1))  # reads A, writes as much as U and Vh take
    our_gradient, their_gradient = gradient(jaxsvd.svd, w), gradient(jnp.linalg.svd, w)
    copied, back = "one pass over the memory", f"{OURS}, gradient"
    rest = {
        copied: lambda: once(a),
        back: lambda: our_gradient(a),
        f"{THEIRS}, gradient": lambda: their_gradient(a),
    }
    rows, claims = against_jnp(case, a, 7, repeats, rest)
    seconds = {row.name: row.seconds for row in rows}
    claims.append(
        Claim(case, "ours / one pass", seconds[OURS] / seconds[copied], 3, at_least=False)
    )
    ratio = seconds[f"{THEIRS}, gradient"] / seconds[back]
    claims.append(Claim(case, "gradient, jnp.linalg.svd / ours", ratio, 5))
    return rows, claims


def cases(quick: bool) -> Iterator[tuple[list[Row], list[Claim]]]:
    many, some = COUNTS[quick]
    repeats = 3 if quick else 5
    yield small(many, 3, repeats)
    yield against_jnp(f"{some} of 48 x 48", normal(some, 48, 48), 50, 3)
    for n in SQUARE[quick]:
        yield against_jnp(f"full {n} x {n}", normal(n, n), 2, 3)
    yield sketched(*LARGE[quick], repeats)
    m, n = TALL[quick]
    yield against_jnp(f"full {m:,} x {n}", normal(m, n), 1, 3)


def run(quick: bool, anywhere: bool = False) -> Report:
    """Return all cases; no rows without an accelerator."""
    if jax.default_backend() == "cpu" and not anywhere:
        return Report([], [])
    found = list(cases(quick))
    return Report(
        [row for rows, _ in found for row in rows],
        [claim for _, claims in found for claim in claims],
        "|A - U S Vh|_F / s_1; randomized: residual on both sides",
    )


if __name__ == "__main__":
    raise SystemExit(main("accelerator", run))
