"""A classifier of digits with a certified Lipschitz constant, beside one without.

    python -m benchmarks.lipschitz [--quick]

Two equal perceptrons on scikit-learn's digits; one keeps s_1 of every weight at most CAP
(`transforms.keep_params_spectral`). Its Lipschitz constant is at most the product of
`norms.spectral_bound` over the layers, a number that holds in float32. Checked: no pair of inputs
and no local slope (s_1 of the Jacobian) exceeds it; and under Gaussian noise on the input the
capped one loses less accuracy. Means over seeds; half of the digits for testing.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsvd import norms, operators, transforms

from .measure import Claim, Report, Row, main
from .norms import cross_entropy, perceptron

CAP = 1.5
NOISES = (0.2, 0.4, 0.6)  # standard deviation; pixels are in [0, 1]


def digits(seed: int):
    """Return (train inputs, train labels), (test inputs, test labels)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    a, b, c, d = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    return (jnp.asarray(a), jnp.asarray(c)), (jnp.asarray(b), jnp.asarray(d))


def logits(weights, x):
    for W in weights[:-1]:
        x = jax.nn.relu(x @ W)
    return x @ weights[-1]


def train(optimizer, data, seed: int, epochs: int):
    x, labels = data
    weights = perceptron(128, 2, x.shape[1], jax.random.key(seed))
    batch = 64
    count = len(x) // batch

    @jax.jit
    def epoch(weights, state, key):
        order = jax.random.permutation(key, len(x))[: count * batch].reshape(count, batch)

        def step(carry, rows):
            weights, state = carry
            gradient = jax.grad(cross_entropy)(weights, x[rows], labels[rows])
            updates, state = optimizer.update(gradient, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, state), order)[0]

    state = optimizer.init(weights)
    for key in jax.random.split(jax.random.key(1000 + seed), epochs):
        weights, state = epoch(weights, state, key)
    return weights


@functools.partial(jax.jit, static_argnames="noise")
def accuracy(weights, x, labels, noise: float):
    noisy = x + noise * jax.random.normal(jax.random.key(7), (20, *x.shape))
    return jnp.mean(jnp.argmax(logits(weights, noisy), axis=-1) == labels[None])


def slopes(weights, x):
    """Return the largest local slope on x, and the largest over pairs of points of x."""
    local = jax.vmap(lambda v: norms.spectral(operators.Jacobian(logits, weights, v)))(x)
    y = np.asarray(logits(weights, x), np.float64)
    z = np.asarray(x, np.float64)
    far = [
        np.linalg.norm(y[i] - y, axis=1)[i + 1 :] / np.linalg.norm(z[i] - z, axis=1)[i + 1 :]
        for i in range(len(x) - 1)
    ]
    return float(jnp.max(local)), max(float(np.max(pairs)) for pairs in far)


def run(quick: bool) -> Report:
    """Return accuracies and bounds of both classifiers, and the claims on them."""
    optimizers = {
        "uncapped": optax.adam(2e-3),
        "capped": optax.chain(optax.adam(2e-3), transforms.keep_params_spectral(CAP)),
    }
    seeds = range(1 if quick else 3)
    results: dict[str, list] = {name: [] for name in optimizers}
    rows, highest, loosest = [], 0.0, 0.0
    for seed in seeds:
        training, (x, labels) = digits(seed)
        for name, optimizer in optimizers.items():
            weights = train(optimizer, training, seed, 5 if quick else 40)
            bound = math.prod(float(norms.spectral_bound(W, 10)) for W in weights)
            bound *= 1 + 1e-6  # of the product
            local, pairs = slopes(weights, x[:100])
            accuracies = [float(accuracy(weights, x, labels, noise)) for noise in (0.0, *NOISES)]
            results[name].append(accuracies)
            if name == "capped":
                highest = max(highest, local / bound, pairs / bound)
                loosest = max(loosest, bound / CAP ** len(weights))
            note = ", ".join(f"{a:.3f}" for a in accuracies)
            note = f"accuracy at noise 0, {', '.join(map(str, NOISES))}: {note}; slope {local:.2f}"
            rows.append(Row(f"digits, seed {seed}", name, None, error=bound, note=note))
    mean = {name: np.mean(values, axis=0) for name, values in results.items()}
    lost = {name: values[0] - values[1:] for name, values in mean.items()}
    claims = [
        Claim("digits", "largest slope by the certified bound", highest, 1.0, False),
        # Ten Gram steps on 64 values: 64^(1/2^11) is 1.002 for each of three layers.
        Claim("digits", "certified bound by the product of the caps", loosest, 1.007, False),
    ]
    for i, noise in enumerate(NOISES):
        what = f"accuracy lost to noise {noise}, uncapped minus capped"
        claims.append(Claim("digits", what, float(lost["uncapped"][i] - lost["capped"][i]), 0.0))
    return Report(rows, claims, "certified Lipschitz bound")


if __name__ == "__main__":
    raise SystemExit(main("lipschitz", run))
