"""A trained transformer brought to a budget of parameters: which ranks lose least?

    python -m benchmarks.compression [--quick] [--folder FOLDER] [--update README.md]

For each seed a transformer of a million parameters (`transformer`) learns the docstrings of NumPy,
SciPy and JAX; then its loss on held-out text at 70, 50 and 30 % of all parameters, without training
what is kept, after

    uniform           SVD of each weight, the same share of each
    global            SVD of each weight, the ranks of the least total error
    activation-aware  the same in the metric of the inputs (`collect_gram`)
    learned           in that metric, ranks by gradients of the loss through gates (`rank_gates`)

and, to tell metric and allocation apart, with errors relative to each weight, in the metric of the
inputs with the same share of each, and with the gates as they start.

Gates on the weights themselves have one derivative, however it is computed: U and V are constants.
It matters where a gate acts on what depends on other gates. So ranks are learned a second time from
truncated activations x W, as in Dobi-SVD, at one budget: through `spectral_map` (exact), through
jnp.linalg.svd (naive), and through triplets whose rule masks 1 / (s_j - s_i) (masked).

Nearly all of the time goes into training. With --folder the trained models and the results of each
seed are kept there and found again. No times are compared.
"""

import argparse
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsvd import compress, spectral_map, svd

from . import transformer
from .measure import Claim, Report, Row, show, versions
from .transformer import Sizes

RESULTS = Path(__file__).parent / "results" / "compression.json"
MARKERS = ("<!-- compression:begin -->", "<!-- compression:end -->")

SHARES = (0.7, 0.5, 0.3)
SEEDS = 5
STATED = 1.6  # nats for a character that every model is to reach before it is compressed
WHERE = "block"  # all kernels of the blocks; embedding and head are 2.5 % of the parameters
METHODS = ("uniform", "global", "activation-aware", "learned")  # the expected order
ROWS = (
    "uniform",
    "global",
    "global, relative errors",
    "activation-aware, uniform",
    "activation-aware",
    "gates, not trained",
    "learned",
)

DYNAMIC = 0.5  # the share at which exact and naive gradients are compared
STEPS, RATE, PRICE = 12, 0.05, 10.0  # of learning gates
POWER = 8  # of the gates, x^p / (1 + x^p)
TOKENS = 256  # in a truncated activation

Spectral = Callable[[Callable[[jax.Array], jax.Array], jax.Array], jax.Array]


def naive(f: Callable[[jax.Array], jax.Array], a: jax.Array) -> jax.Array:
    """Return U f(S) Vh from the triplets of jnp.linalg.svd, as one would write it."""
    U, S, Vh = jnp.linalg.svd(a, full_matrices=False)
    return (U * f(S)[None, :]) @ Vh


def masked(f: Callable[[jax.Array], jax.Array], a: jax.Array) -> jax.Array:
    """Return the same from triplets whose derivative leaves out what it cannot divide by."""
    U, S, Vh = svd(a, full_matrices=False)
    return (U * f(S)[None, :]) @ Vh


DERIVATIVES: dict[str, Spectral] = {"exact": spectral_map, "masked": masked, "naive": naive}


class Truncated:
    """A kernel whose products x W are let through a gate on their singular values (Dobi-SVD)."""

    def __init__(self, kernel: jax.Array, log_threshold: jax.Array, spectral: Spectral):
        self.kernel, self.threshold, self.spectral = kernel, jnp.exp(log_threshold), spectral

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel
        powers = lambda s: (s / self.threshold) ** POWER  # noqa: E731
        gated = self.spectral(lambda s: s * powers(s) / (1 + powers(s)), y.reshape(-1, y.shape[-1]))
        return gated.reshape(y.shape)


def with_truncated_products(params: Any, gates: Any, spectral: Spectral) -> Any:
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    leaves = []
    for path, leaf in named:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaves.append(Truncated(leaf, gates[name], spectral) if name in gates else leaf)
    return jax.tree.structure(params).unflatten(leaves)


@functools.cache
def stepper(kind: str) -> Callable[..., Any]:
    """Return a compiled step of learning gates, of the weights or of their products."""

    def loss(gates, batch, params, metrics, allowed):
        if kind == "weights":
            gated = compress.apply_gates(params, gates, metrics, sharpness=POWER)
        else:
            gated = with_truncated_products(params, gates, DERIVATIVES[kind])
        # How many parameters the gates let through: one more than that is above a budget of one.
        count = 1 + compress.gate_budget(params, gates, 1, metrics, sharpness=POWER)
        above = jnp.maximum(count / allowed - 1, 0)
        return transformer.loss(gated, batch) + PRICE * above

    @jax.jit
    def step(gates, state, *problem):
        gradient = jax.grad(loss)(gates, *problem)
        finite = jnp.all(jnp.stack([jnp.isfinite(x) for x in jax.tree.leaves(gradient)]))
        updates, state = optax.adam(RATE).update(gradient, state)
        return optax.apply_updates(gates, updates), state, finite

    return step


def factor(gram: jax.Array) -> compress.Factor:
    """Return F of C = F^T F, so that steps need no eigenvalues of a constant."""
    values, Q = np.linalg.eigh(np.asarray(gram, np.float64))
    return compress.Factor(jnp.asarray(np.sqrt(np.maximum(values, 0))[:, None] * Q.T, gram.dtype))


class Trial:
    """A trained model, what its weights have seen, and text to learn gates from."""

    def __init__(self, params: Any, sizes: Sizes, seed: int, steps: int):
        text, _ = transformer.text()
        self.params, self.sizes, self.seed = params, sizes, seed
        inputs = transformer.windows(text, 256, sizes.context, 1000 + seed)[:, :-1]
        batches = inputs.reshape(4, 64, sizes.context)
        sums = compress.collect_gram(transformer.logits, params, batches, WHERE)
        # Of TOKENS tokens: gates on weights then agree with gates on truncated activations.
        self.metrics = {name: factor(C * (TOKENS / inputs.size)) for name, C in sums.items()}
        pieces = transformer.windows(text, steps * sizes.batch, sizes.context, 2000 + seed)
        self.pieces = pieces.reshape(steps, sizes.batch, -1)
        self.total = sum(x.size for x in jax.tree.leaves(params))

    def evaluate(self, params: Any) -> float:
        return transformer.validation_loss(params, self.sizes, 256)

    def after(self, share: float, **options: Any) -> float:
        """Return the loss at a share of the parameters, which is never exceeded."""
        small, report = compress.to_budget(self.params, share, where=WHERE, **options)
        assert report.after <= share * report.before
        return self.evaluate(compress.densify(small))

    def gates(self, share: float) -> dict[str, jax.Array]:
        return compress.rank_gates(self.params, share, self.metrics, WHERE, sharpness=POWER)

    def learn(self, kind: str, share: float) -> tuple[dict[str, jax.Array], int]:
        """Return gates, and for how many steps their gradient was finite."""
        gates, pieces = self.gates(share), self.pieces
        if kind != "weights":
            pieces = pieces[:, : max(1, TOKENS // self.sizes.context)]
        state = optax.adam(RATE).init(gates)
        for count, batch in enumerate(pieces):
            problem = batch, self.params, self.metrics, share * self.total
            new, state, finite = stepper(kind)(gates, state, *problem)
            if not finite:
                return gates, count
            gates = new
        return gates, len(pieces)

    def by_method(self, share: float, method: str) -> float:
        """Return the loss of a row of the table."""
        if method in ("uniform", "global"):
            return self.after(share, allocation=method)
        if method == "global, relative errors":
            return self.after(share, relative=True)
        if method == "activation-aware, uniform":
            return self.after(share, metrics=self.metrics, allocation="uniform")
        if method == "activation-aware":
            return self.after(share, metrics=self.metrics)
        gates = self.gates(share)
        if method == "learned":
            gates, _ = self.learn("weights", share)
        return self.after(share, metrics=self.metrics, gates=gates)

    def dynamic(self, kind: str) -> dict[str, float]:
        """Return the loss with ranks learned from truncated activations."""
        gates, steps = self.learn(kind, DYNAMIC)
        return {"loss": self.after(DYNAMIC, metrics=self.metrics, gates=gates), "steps": steps}


# --------------------------------------------------------------------------------- seeds and table


def trained(folder: Path, sizes: Sizes, seed: int) -> Any:
    """Return a trained model, from the folder if it is there."""
    path = folder / f"model-{seed}.npz"
    if not path.exists():
        compress.save(transformer.train(sizes, seed), path)
    return compress.load(path, transformer.init(sizes, seed))


@functools.cache
def trial_of(folder: Path, sizes: Sizes, seed: int, steps: int) -> Trial:
    return Trial(trained(folder, sizes, seed), sizes, seed, steps)


def parts() -> list[str]:
    """Return what is found for each seed, the quick ones first."""
    rows = [f"{share} {name}" for name in ROWS[:-1] for share in SHARES]
    return ["dense", *rows, *(f"{share} {ROWS[-1]}" for share in SHARES), *DERIVATIVES]


def losses(folder: Path, sizes: Sizes, seed: int, steps: int, part: str) -> dict[str, Any]:
    """Return what is found for a seed, one part more than before; all of it is in the folder."""
    path = folder / f"losses-{seed}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if part not in found:
        trial = trial_of(folder, sizes, seed, steps)
        found["parameters"] = trial.total
        if part == "dense":
            found[part] = trial.evaluate(trial.params)
        elif part in DERIVATIVES:
            found[part] = trial.dynamic(part)
        else:
            share, name = part.split(" ", 1)
            found[part] = trial.by_method(float(share), name)
        path.write_text(json.dumps(found))
        print(seed, part, found[part], file=sys.stderr, flush=True)
    return found


def collect(
    quick: bool, folder: Path | None = None, seeds: Iterable[int] = range(SEEDS)
) -> dict[str, Any]:
    """Return the losses of all seeds, and what they were computed with."""
    sizes = Sizes(width=32, depth=2, steps=30) if quick else Sizes()
    steps, seeds = (2, [0]) if quick else (STEPS, list(seeds))
    found: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        for part in parts():
            for seed in seeds:
                found[seed] = losses(place, sizes, seed, steps, part)
    facts = {"sizes": sizes._asdict(), "gate steps": steps, "versions": versions()}
    return {**facts, "seeds": list(found.values())}


def _mean(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def table(found: dict[str, Any]) -> str:
    """Return the table for the README, and in words where the expected order does not hold."""
    seeds = found["seeds"]
    shares = [str(share) for share in SHARES]
    lines = [
        "| parameters kept | " + " | ".join(f"{float(share):.0%}" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for name in ROWS:
        cells = [_mean([seed[f"{share} {name}"] for seed in seeds]) for share in shares]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    dense = [seed["dense"] for seed in seeds]
    head = (
        f"Loss on held-out text, nats for a character, of {seeds[0]['parameters']:,} parameters "
        f"trained to {_mean(dense)}; means and standard deviations of {len(seeds)} seeds; "
        "`python -m benchmarks.compression` writes it."
    )
    return "\n".join([head, "", *lines, "", *sentences(found)])


def gains(seeds: list[dict[str, Any]], share: float, worse: str, better: str) -> np.ndarray:
    """Return by how much the second loses less, for each seed."""
    return np.array([seed[f"{share} {worse}"] - seed[f"{share} {better}"] for seed in seeds])


def sentences(found: dict[str, Any]) -> list[str]:
    """Return what holds of the expected order, and what the derivatives make of the ranks."""
    seeds, wrong = found["seeds"], []
    for share, (worse, better) in itertools.product(SHARES, itertools.pairwise(METHODS)):
        gain = gains(seeds, share, worse, better)
        if not gain.mean() > 0:
            wrong.append(
                f"at {share:.0%} {better} loses {-gain.mean():.3f} more than {worse} "
                f"(better in {sum(gain > 0)} of {len(gain)} seeds)"
            )
    order = " > ".join(METHODS)
    lines = [f"Expected order of the losses: {order}."]
    lines.append(f"It does not hold everywhere: {'; '.join(wrong)}." if wrong else "It holds.")
    parts = []
    for name in DERIVATIVES:
        runs = [seed[name] for seed in seeds]
        stopped = sum(run["steps"] < found["gate steps"] for run in runs)
        words = f" (gradient NaN in {stopped} of {len(runs)} seeds)" if stopped else ""
        parts.append(f"{name} {_mean([run['loss'] for run in runs])}{words}")
    lines.append(
        f"Ranks learned from truncated activations, {DYNAMIC:.0%} kept: {', '.join(parts)}."
    )
    return [" ".join(lines)]


def report(found: dict[str, Any]) -> Report:
    """Return the rows and the claims on them."""
    seeds, rows, claims = found["seeds"], [], []
    for share in map(str, SHARES):
        case = f"{float(share):.0%} kept"
        rows += [
            Row(case, name, None, note=_mean([seed[f"{share} {name}"] for seed in seeds]))
            for name in ROWS
        ]
        for worse, better in itertools.pairwise(METHODS):
            gain = float(gains(seeds, float(share), worse, better).mean())
            claims.append(Claim(case, f"loss of {worse} minus {better}", gain, 0.0))
    for name in DERIVATIVES:
        note = _mean([seed[name]["loss"] for seed in seeds])
        rows.append(Row(f"truncated activations, {DYNAMIC:.0%} kept", name, None, note=note))
    differences = [seed["naive"]["loss"] - seed["exact"]["loss"] for seed in seeds]
    case = f"truncated activations, {DYNAMIC:.0%} kept"
    claims.append(Claim(case, "loss of naive minus exact", float(np.mean(differences)), 0.0))
    worst = max(seed["dense"] for seed in seeds)
    if found["sizes"] == Sizes()._asdict():
        claims.append(Claim("trained", "loss before, the worst seed", worst, STATED, False))
        count = seeds[0]["parameters"]
        claims.append(Claim("trained", "parameters", count, 1_000_000))
    return Report(rows, claims, "note: loss on held-out text, mean and spread over seeds")


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return report(collect(quick))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compression")
    parser.add_argument("--quick", action="store_true", help="a small model, one seed")
    parser.add_argument("--folder", type=Path, help="where models and losses are kept and found")
    parser.add_argument("--seed", type=int, action="append", help="only these, to share the work")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into FILE")
    parser.add_argument("--from-results", action="store_true", help=f"compute nothing: {RESULTS}")
    arguments = parser.parse_args()
    if arguments.from_results:
        found = json.loads(RESULTS.read_text())
    else:
        found = collect(arguments.quick, arguments.folder, arguments.seed or range(SEEDS))
        if not arguments.quick and arguments.seed is None:
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), end="\n\n")
    if arguments.update:
        from .derivatives import update  # which imports all that those need

        update(arguments.update, table(found), MARKERS)
    shown = report(found)
    show(shown)
    return 0 if all(claim.holds for claim in shown.claims) else 1


if __name__ == "__main__":
    raise SystemExit(main())
