"""Recommenders: ratings per second, and errors against those who know the truth.

    python -m benchmarks.recommender [--quick]

Ratings come from known factors with Gaussian noise. Speed: epochs of SGD on a million ratings, by
the difference of two numbers of epochs, against the same loop in NumPy (on a part of them) and
Surprise where it is installed. Error: mini-batches against sequential steps, and all fits against
the Bayes error, that of the noise alone.
"""

import collections
import functools
import time

import jax
import numpy as np

from jaxsvd.models import recommender

from .measure import Claim, Report, Row, main


def generated(users: int, items: int, k: int, count: int, noise: float, skewed: bool = False):
    """Return ratings, and those that the factors alone would give.

    Skewed: a few items have most of the ratings, the first of 1682 1.3 % of them.
    """
    rng = np.random.default_rng(0)
    p, q = rng.standard_normal((users, k)), rng.standard_normal((items, k)) / k**0.5
    a, b = 0.5 * rng.standard_normal(users), 0.5 * rng.standard_normal(items)
    share = None
    if skewed:
        share = np.tile(1 / (np.arange(items) + 15), users)
        share /= share.sum()
    u, i = np.divmod(rng.choice(users * items, count, replace=False, p=share), items)
    truth = 3.5 + a[u] + b[i] + np.einsum("ij,ij->i", p[u], q[i])
    values = (truth + noise * rng.standard_normal(count)).astype(np.float32)
    return recommender.ratings(u, i, values, (users, items)), truth


def sequential(data, k: int, epochs: int, rate: float, reg: float, seed: int = 0):
    """Funk's loop in NumPy, one rating after the other."""
    rng = np.random.default_rng(seed)
    p, q = (0.1 * rng.standard_normal((n, k)) for n in data.shape)
    a, b = np.zeros(data.shape[0]), np.zeros(data.shape[1])
    mean = float(data.values.mean(dtype=np.float64))
    for _ in range(epochs):
        order = rng.permutation(data.values.size)
        triples = (x[order].tolist() for x in (data.users, data.items, data.values))
        for u, i, r in zip(*triples, strict=True):
            pu, qi = p[u], q[i]
            e = r - mean - a[u] - b[i] - pu @ qi
            a[u] += rate * (e - reg * a[u])
            b[i] += rate * (e - reg * b[i])
            p[u], q[i] = pu + rate * (e * qi - reg * pu), qi + rate * (e * pu - reg * qi)
    return recommender.Factors(p, q, a, b, mean)


def error(state, data) -> float:
    return recommender.rmse(recommender.predict(state, data.users, data.items), data.values)


def _seconds(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def by_surprise(data, k: int):
    """Return a function of the epochs that fits with Surprise, or None."""
    try:
        from surprise import SVD
        from surprise.trainset import Trainset
    except ImportError:
        return None
    by_user, by_item = collections.defaultdict(list), collections.defaultdict(list)
    for u, i, r in zip(*(x.tolist() for x in data[:3]), strict=True):
        by_user[u].append((i, r))
        by_item[i].append((u, r))
    names = [{n: n for n in range(count)} for count in data.shape]
    train = Trainset(by_user, by_item, *data.shape, data.values.size, (1, 5), *names)
    return lambda epochs: SVD(n_factors=k, n_epochs=epochs, random_state=0).fit(train)


def speed(quick: bool) -> tuple[list[Row], list[Claim]]:
    rows, claims = [], []
    count = 100_000 if quick else 1_000_000
    for k in (20, 100):
        data, _ = generated(6040, 3700, 10, count, 0.8)
        part = data.select(slice(0, 10_000))
        case = f"SGD, {count} ratings of 6040 x 3700, {k} factors"

        def ours(epochs, data=data, k=k):
            return recommender.sgd(data, k, epochs=epochs)

        ours(2), ours(12)  # compiled for each number of epochs
        long, short = (min(_seconds(functools.partial(ours, e)) for _ in range(3)) for e in (12, 2))
        rates = {"jaxsvd": 10 * count / (long - short)}
        rates["NumPy loop"] = part.values.size / _seconds(
            lambda part=part, k=k: sequential(part, k, 1, 0.005, 0.02)
        )
        fit = by_surprise(data, k)
        if fit is not None:
            long, short = (
                min(_seconds(functools.partial(fit, e)) for _ in range(2)) for e in (4, 1)
            )
            rates["Surprise"] = 3 * count / (long - short)
        for name, rate in rates.items():
            note = f"{rate / 1e6:.3g} million ratings a second"
            rows.append(Row(case, name, 1e6 / rate, note=note))
        if fit is None:
            rows.append(Row(case, "Surprise", None, note="not installed"))
        for name in rates:
            if name != "jaxsvd":
                bar = 20 if "NumPy" in name else 1
                claims.append(Claim(case, f"times {name}", rates["jaxsvd"] / rates[name], bar))
    return rows, claims


def batches(quick: bool) -> tuple[list[Row], list[Claim]]:
    """Mini-batches against sequential SGD: the same data, rates and epochs."""
    users, items, count, epochs = (300, 200, 12_000, 10) if quick else (943, 1682, 100_000, 20)
    data, _ = generated(users, items, 5, count, 0.8, skewed=True)
    train, test = recommender.split(data)
    case = f"held-out RMSE, {count} ratings of {users} x {items}, {epochs} epochs"
    rate = 0.02
    state = sequential(train, 20, epochs, rate, 0.02)
    loop = error(state, test)
    rows = [Row(case, "sequential, NumPy", None, error=loop, note=f"RMSE {loop:.4f}")]
    claims = []
    for size in (256, 1024, 4096):
        state = recommender.sgd(train, 20, epochs=epochs, learning_rate=rate, batch_size=size)
        found = error(state, test)
        note = f"RMSE {found:.4f}"
        rows.append(Row(case, f"batches of {size}", None, error=found, note=note))
        what = f"batches of {size}: RMSE from the sequential one"
        claims.append(Claim(case, what, abs(found - loop), 0.005, False))
    return rows, claims


def bayes(quick: bool) -> tuple[list[Row], list[Claim]]:
    users, items, count = (700, 600, 330_000) if quick else (3000, 2000, 2_000_000)
    k, noise = (1, 0.8) if quick else (3, 0.8)
    data, _ = generated(users, items, k, count, noise)
    train, test = recommender.split(data, 0.1)
    case = f"{count} ratings of {users} x {items}, {k} factors, Bayes error {noise}"
    rate = lambda epoch: 0.02 * 0.85**epoch  # noqa: E731
    fits = {
        "als": lambda: recommender.als(train, k, regularization=noise**2),
        "sgd": lambda: recommender.sgd(
            train, k, epochs=30, learning_rate=rate, regularization=0.002
        ),
    }
    rows, claims = [], []
    for name, fit in fits.items():
        found = error(fit(), test)
        note = f"RMSE {found:.4f}"
        rows.append(Row(case, name, _seconds(fit), error=found, note=note))
        claims.append(Claim(case, f"{name}: RMSE by the Bayes error", found / noise, 1.01, False))
    return rows, claims


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    rows, claims = [], []
    for part in (speed, batches, bayes):
        found = part(quick)
        rows += found[0]
        claims += found[1]
    return Report(rows, claims, "seconds of a million ratings (SGD) or of the fit; RMSE")


if __name__ == "__main__":
    raise SystemExit(main("recommender", run))
