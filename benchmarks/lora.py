"""Adapters against full fine-tuning: pretrained on the digits 0 to 4, adapted to 5 to 9.

    python -m benchmarks.lora [--quick]

A perceptron 64-512-512-10 on scikit-learn's digits, half of them for testing. Full fine-tuning
moves all weights, the adapters under 5 % as many. Accuracies on the test digits 5 to 9, means and
standard deviations over seeds, which draw split, weights, adapters and batches. Each way of tuning
has its own learning rate, the best of RATES on seeds that are not reported; PiSSA and the standard
start choose from the same ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsvd import lora

from .lipschitz import digits, logits
from .measure import Claim, Report, Row, main
from .norms import cross_entropy, perceptron

RANK, BATCH = 6, 64
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EPOCHS, SEEDS = 30, 5
MARKS = (1, 3, 10, EPOCHS)  # epochs after which the curves are shown


def part(data, is_new: bool):
    """Return the digits 5 to 9, or 0 to 4."""
    x, labels = data
    rows = (labels >= 5) == is_new
    return x[rows], labels[rows]


@jax.jit
def fit(tuned, base, rate, train, test, key):
    """Return what is tuned, after each epoch its test accuracy, and the loss of the last epoch.

    ``base`` None: ``tuned`` are the weights themselves; else adapters of it.
    """
    weights_of = (lambda t: t) if base is None else (lambda t: lora.apply(base, t))
    x, labels = train
    optimizer = optax.adam(rate)
    count = len(x) // BATCH

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))[: count * BATCH].reshape(count, BATCH)

        def step(carry, rows):
            tuned, state = carry
            loss = lambda t: cross_entropy(weights_of(t), x[rows], labels[rows])  # noqa: E731
            value, gradient = jax.value_and_grad(loss)(tuned)
            updates, state = optimizer.update(gradient, state, tuned)
            return (optax.apply_updates(tuned, updates), state), value

        carry, values = jax.lax.scan(step, carry, order)
        right = jnp.argmax(logits(weights_of(carry[0]), test[0]), axis=-1) == test[1]
        return carry, (jnp.mean(right), jnp.mean(values))

    start = tuned, optimizer.init(tuned)
    (tuned, _), (accuracies, losses) = jax.lax.scan(epoch, start, jax.random.split(key, EPOCHS))
    return tuned, accuracies, losses


def starts(base, key):
    """Return what each way of tuning starts with, and what it is applied to."""
    return {
        "full": (base, None),
        "LoRA": (lora.init(key, base, RANK), base),
        "PiSSA": (lora.init(key, base, RANK, method="pissa"), base),
    }


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def trained_size(tuned) -> int:
    """Return how many numbers are trained; constants of adapters do not count."""
    if not any(map(lora.adapter.is_adapter, tuned)):
        return size(tuned)
    mask = lora.trainable(tuned)
    pairs = zip(jax.tree.leaves(tuned), jax.tree.leaves(mask), strict=True)
    return sum(x.size for x, is_trained in pairs if is_trained)


def curves(seed: int, rates):
    """Return for each way its accuracies and losses by epoch at a rate, and its trained size."""
    training, testing = digits(seed)
    key = jax.random.key(seed)
    base = perceptron(512, 2, training[0].shape[1], key)
    old, new = ((part(training, is_new), part(testing, is_new)) for is_new in (False, True))
    base, _, _ = fit(base, None, 1e-3, *old, key)
    found = {}
    for name, (tuned, held) in starts(base, jax.random.fold_in(key, 1)).items():
        _, accuracies, losses = fit(tuned, held, rates[name], *new, key)
        found[name] = np.asarray(accuracies), np.asarray(losses), trained_size(tuned) / size(base)
    return found


def best_rates(seeds) -> dict[str, float]:
    """Return for each way the rate of the highest mean accuracy over the curve."""
    scores: dict[str, list[float]] = {name: [] for name in ("full", "LoRA", "PiSSA")}
    for rate in RATES:
        runs = [curves(seed, dict.fromkeys(scores, rate)) for seed in seeds]
        for name, values in scores.items():
            values.append(float(np.mean([run[name][0] for run in runs])))
    return {name: RATES[int(np.argmax(values))] for name, values in scores.items()}


def run(quick: bool) -> Report:
    """Return the curves of all three, and the claims on them."""
    with jax.numpy_dtype_promotion("standard"):
        rates = best_rates([100] if quick else [100, 101])
        runs = [curves(seed, rates) for seed in range(SEEDS)]
    rows, last, early = [], {}, {}
    full = 100 * np.array([found["full"][0][-1] for found in runs])
    for name, rate in rates.items():
        accuracies = 100 * np.stack([found[name][0] for found in runs])
        losses = np.stack([found[name][1] for found in runs])
        last[name], early[name] = accuracies[:, -1].mean(), accuracies[:, :3].mean()
        shown = [
            f"{accuracies[:, i - 1].mean():.1f}+-{accuracies[:, i - 1].std():.1f}" for i in MARKS
        ]
        share = runs[0][name][2]
        note = f"accuracy after {', '.join(map(str, MARKS))} epochs: {', '.join(shown)}; "
        behind = full - accuracies[:, -1]
        note += f"behind full by {behind.mean():.2f}+-{behind.std():.2f} points; "
        note += f"loss {losses[:, -1].mean():.1e}; {100 * share:.1f} % trained, rate {rate:g}"
        rows.append(Row("digits 5 to 9", name, None, error=1 - last[name] / 100, note=note))
    case = "digits 5 to 9"
    claims = [
        Claim(case, "% of the parameters trained", 100 * runs[0]["LoRA"][2], 5.0, False),
        Claim(case, "accuracy of full minus LoRA, points", last["full"] - last["LoRA"], 1.0, False),
        Claim(
            case, "accuracy of full minus PiSSA, points", last["full"] - last["PiSSA"], 1.0, False
        ),
        Claim(case, "PiSSA minus LoRA, epochs 1 to 3, points", early["PiSSA"] - early["LoRA"], 0.0),
    ]
    return Report(rows, claims, "share of wrong answers")


if __name__ == "__main__":
    raise SystemExit(main("lora", run))
