"""What following a spectrum costs in training: the tracked s_1, the refresh of a low-rank basis.

    python -m benchmarks.norms [--quick]

Tracker: a perceptron of width 1024 at batch 512 under Adam, each square weight followed by one step
of `norms.spectral_step` per training step; its relative error after 40 steps, and its time beside
that of the training step. Refresh: 2048 x 2048, rank 64, against the full SVD in optax.contrib's
GaLore. Loss: both optimizers on one problem at the same rank, so at the same memory.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsvd
from jaxsvd import norms, transforms

from .measure import Claim, Report, Row, first_call, main, medians


def perceptron(width: int, depth: int, inputs: int, key):
    """Return weights scaled for rectified linear units."""
    sizes = [inputs, *[width] * depth, 10]
    keys = jax.random.split(key, len(sizes))
    pairs = list(itertools.pairwise(sizes))
    return [
        jax.random.normal(k, (n, m)) * (2 / n) ** 0.5
        for k, (n, m) in zip(keys, pairs, strict=False)
    ]


def cross_entropy(weights, x, labels):
    for W in weights[:-1]:
        x = jax.nn.relu(x @ W)
    logits = x @ weights[-1]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def tracker(quick: bool) -> tuple[list[Row], list[Claim]]:
    width, batch, steps = 1024, 512, 40
    weights = perceptron(width, 3, width, jax.random.key(0))
    optimizer = optax.adam(1e-3)
    state = optimizer.init(weights)
    square = [i for i, W in enumerate(weights) if W.shape == (width, width)]
    tracked = [norms.spectral_init(weights[i]) for i in square]
    x = jax.random.normal(jax.random.key(1), (batch, width))
    labels = jax.random.randint(jax.random.key(2), (batch,), 0, 10)

    @jax.jit
    def train(weights, state):
        gradient = jax.grad(cross_entropy)(weights, x, labels)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    @jax.jit
    def train_and_follow(weights, state, tracked):
        weights, state = train(weights, state)
        pairs = [norms.spectral_step(weights[i], t) for i, t in zip(square, tracked, strict=True)]
        return weights, state, [sigma for sigma, _ in pairs], [t for _, t in pairs]

    @jax.jit
    def follow(weights, tracked):
        return [norms.spectral_step(weights[i], t) for i, t in zip(square, tracked, strict=True)]

    for _ in range(steps):
        weights, state, sigmas, tracked = train_and_follow(weights, state, tracked)
    truth = [np.linalg.norm(np.asarray(weights[i], np.float64), 2) for i in square]
    error = max(abs(float(s) / t - 1) for s, t in zip(sigmas, truth, strict=True))
    calls = {
        "training step (Adam)": lambda: train(weights, state),
        "with norms.spectral_step": lambda: train_and_follow(weights, state, tracked),
        "norms.spectral_step by itself": lambda: follow(weights, tracked),
    }
    seconds = medians(calls, repeats=9 if quick else 101, warm=3)
    alone, both, tracking = calls
    case = f"width {width}, batch {batch}, {len(square)} weights followed"
    rows = [
        Row(case, alone, seconds[alone]),
        Row(case, both, seconds[both], error=error, note="after 40 steps"),
        Row(case, tracking, seconds[tracking]),
    ]
    # Not both / alone - 1: two programs of the same step differ by 2 % either way, run by run.
    share = seconds[tracking] / seconds[alone]
    return rows, [
        Claim(case, "relative error of the tracked s_1 after 40 steps", error, 0.01, False),
        Claim(case, "time of the tracker by that of the step", share, 0.03, False),
    ]


def refresh(quick: bool) -> tuple[list[Row], list[Claim]]:
    n, rank = (1024, 32) if quick else (2048, 64)
    keys = jax.random.split(jax.random.key(0), 3)
    A = jax.random.normal(keys[0], (n, rank)) @ jax.random.normal(keys[1], (rank, n))
    G = A + jax.random.normal(keys[2], (n, n))
    base = optax.identity()
    contenders = {
        "optax.contrib.galore": optax.contrib.galore(1.0, rank, 1, base_optimizer=base),
        "randomized": transforms.scale_by_low_rank(rank, base, 1),
        "warm": transforms.scale_by_low_rank(rank, base, 1, "warm"),
    }
    # The identity as base: besides the refresh there are two products with the basis.
    calls, compile_seconds, errors = {}, {}, {}
    best = float(jnp.linalg.norm(G - jaxsvd.low_rank(G, rank)))
    for name, link in contenders.items():
        update = jax.jit(link.update)
        (updates, state), first = first_call(functools.partial(update, G, link.init(G), G))
        for _ in range(1 if name == "warm" else 0):
            updates, state = update(G, state, G)
        calls[name] = functools.partial(update, G, state, G)
        compile_seconds[name] = first
        sign = -1 if "galore" in name else 1
        errors[name] = float(jnp.linalg.norm(G - sign * updates)) / best - 1
    seconds = medians(calls, repeats=1 if quick else 3, warm=0)
    case = f"refresh, {n} x {n}, rank {rank}"
    rows = [
        Row(case, name, seconds[name], compile_seconds[name] - seconds[name], error=errors[name])
        for name in contenders
    ]
    claims = [
        Claim(case, f"{name}: times faster", seconds["optax.contrib.galore"] / seconds[name], 5)
        for name in ("randomized", "warm")
    ]
    return rows, claims


def losses(quick: bool) -> tuple[list[Row], list[Claim]]:
    """A student learns a teacher: the final loss at one rank, learning rate and refresh period."""
    width, rank, every, steps, batch = 128, 8, 25, 100 if quick else 600, 128
    rows, claims = [], []
    ratios = {"randomized": [], "warm": [], "residual": []}
    for seed in range(1 if quick else 3):
        teacher = perceptron(width, 2, 64, jax.random.key(seed))
        student = perceptron(width, 2, 64, jax.random.key(100 + seed))
        xs = jax.random.normal(jax.random.key(200 + seed), (steps, batch, 64))
        test = jax.random.normal(jax.random.key(300 + seed), (2048, 64))

        def apply(weights, x):
            for W in weights[:-1]:
                x = jax.nn.relu(x @ W)
            return x @ weights[-1]

        def loss(weights, x, teacher=teacher):
            return jnp.mean(jnp.square(apply(weights, x) - apply(teacher, x)))

        def final(optimizer, student=student, xs=xs, test=test, loss=loss):
            def body(carry, x):
                weights, state = carry
                gradient = jax.grad(loss)(weights, x)
                updates, state = optimizer.update(gradient, state, weights)
                return (optax.apply_updates(weights, updates), state), None

            run = jax.jit(lambda w, s, xs: jax.lax.scan(body, (w, s), xs)[0][0])
            return float(loss(run(student, optimizer.init(student), xs), test))

        def ours(seed=seed, **options):
            link = transforms.scale_by_low_rank(rank, None, every, seed=seed, **options)
            return final(optax.chain(link, optax.scale(-3e-3)))

        found = {
            "optax.contrib.galore": final(optax.contrib.galore(3e-3, rank, every)),
            "randomized": ours(),
            "warm": ours(refresh="warm"),
            "residual": ours(residual=1.0),
            "Adam, full rank": final(optax.adam(3e-3)),
        }
        case = f"student of a teacher, rank {rank} of {width}, seed {seed}"
        rows += [Row(case, name, None, error=value, note="loss") for name, value in found.items()]
        for name in ratios:
            ratios[name].append(found[name] / found["optax.contrib.galore"])
    for name, ratio in ratios.items():
        what = f"{name}: final loss by GaLore's, the worst seed"
        claims.append(Claim(f"student, rank {rank}", what, max(ratio), 1.0, False))
    return rows, claims


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    rows, claims = [], []
    for part in (tracker, refresh, losses):
        found = part(quick)
        rows += found[0]
        claims += found[1]
    return Report(rows, claims, "relative error; of a loss the loss itself")


if __name__ == "__main__":
    raise SystemExit(main("norms", run))
