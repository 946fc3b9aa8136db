"""A small transformer of characters and the text it learns: docstrings of installed packages.

Pre-norm blocks of causal attention and a multilayer perceptron, written over a plain dict of arrays
whose kernels are (inputs, outputs); 1.008 million parameters at the default size. The text is that
of the docstrings of NumPy, SciPy and JAX, which every machine that runs the benchmarks has.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

PACKAGES = ("numpy", "scipy", "jax")
SYMBOLS = 97  # newline, the 95 printable characters of ASCII, and one for all others
HEADS = 4
SHORTEST = 80  # characters of a docstring that is read
HELD_OUT = 20  # every so-manieth file is for validation, with all of its docstrings


class Sizes(NamedTuple):
    """Of the model (width, depth, context) and of its training (batch, steps, rate)."""

    width: int = 128
    depth: int = 5
    context: int = 64
    batch: int = 16
    steps: int = 1000
    rate: float = 3e-3


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


@functools.cache
def text() -> tuple[np.ndarray, np.ndarray]:
    """Return the symbols of the training and of the validation text, each (characters,).

    A docstring that occurs twice is read once; files are whole on one side.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    seen = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ImportError(f"benchmarks.transformer: reads the docstrings of {package}")
        files = sorted(Path(spec.origin).parent.rglob("*.py"))
        for number, path in enumerate(x for x in files if "tests" not in x.parts):
            for doc in _docstrings(path):
                if len(doc) >= SHORTEST and doc not in seen:
                    seen.add(doc)
                    parts[number % HELD_OUT == 0].append(doc)
    codes = [np.frombuffer("\n".join(x).encode("ascii", "replace"), np.uint8) for x in parts]
    training, validation = (np.where(x == 10, 0, np.clip(x.astype(int) - 31, 1, 96)) for x in codes)
    return training.astype(np.uint8), validation.astype(np.uint8)


def windows(symbols: np.ndarray, count: int, context: int, seed: int) -> jax.Array:
    """Return pieces of the text from places drawn at random, (count, context + 1)."""
    starts = np.random.default_rng(seed).integers(0, len(symbols) - context - 1, count)
    return jnp.asarray(symbols[starts[:, None] + np.arange(context + 1)].astype(np.int32))


def init(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Return the parameters before training."""
    d = sizes.width
    keys = iter(jax.random.split(jax.random.key(seed), 4 * sizes.depth + 2))

    def normal(rows, columns, scale):
        return scale * jax.random.normal(next(keys), (rows, columns), jnp.float32)

    params: dict[str, Any] = {
        "embed": normal(SYMBOLS, d, 0.02),
        "head": normal(d, SYMBOLS, d**-0.5),
    }
    for i in range(sizes.depth):
        params[f"block{i}"] = {
            "attention": {"qkv": normal(d, 3 * d, d**-0.5), "out": normal(d, d, d**-0.5)},
            "mlp": {"up": normal(d, 4 * d, d**-0.5), "down": normal(4 * d, d, (4 * d) ** -0.5)},
        }
    return params


def _norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def _rotated(x: jax.Array) -> jax.Array:
    """Return queries or keys (batch, length, heads, size) turned by their places (RoPE)."""
    length, half = x.shape[1], x.shape[-1] // 2
    angles = np.arange(length)[:, None] * 1e-4 ** (np.arange(half) / half)
    turn = jnp.asarray(np.exp(1j * angles)[None, :, None, :], jnp.complex64)
    first, second = x[..., :half], x[..., half:]
    cos, sin = jnp.real(turn), jnp.imag(turn)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def logits(params: dict[str, Any], symbols: jax.Array) -> jax.Array:
    """Return the logits of the next symbol, (batch, length, SYMBOLS), of symbols (batch, length).

    A kernel may be anything that an array can be multiplied by from the left.
    """
    batch, length = symbols.shape
    x = params["embed"][symbols]
    causal = jnp.tril(jnp.ones((length, length), bool))
    for i in range(sum(name.startswith("block") for name in params)):
        attention, mlp = params[f"block{i}"]["attention"], params[f"block{i}"]["mlp"]
        q, k, v = jnp.split(_norm(x) @ attention["qkv"], 3, axis=-1)
        q, k, v = (y.reshape(batch, length, HEADS, -1) for y in (q, k, v))
        q, k = _rotated(q), _rotated(k)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, -1)
        x = x + mixed @ attention["out"]
        x = x + jnp.square(jax.nn.relu(_norm(x) @ mlp["up"])) @ mlp["down"]
    return _norm(x) @ params["head"]


def loss(params: dict[str, Any], pieces: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of the next symbol in nats, pieces (batch, context + 1)."""
    found = logits(params, pieces[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, pieces[:, 1:]))


def _optimizer(sizes: Sizes) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, sizes.rate, sizes.steps // 20 + 1, sizes.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1))


@functools.partial(jax.jit, static_argnames="sizes", donate_argnums=(0, 1))
def _step(params, state, pieces, sizes: Sizes):
    value, gradient = jax.value_and_grad(loss)(params, pieces)
    updates, state = _optimizer(sizes).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def train(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Return parameters after training by AdamW on pieces of the text drawn at random."""
    params = init(sizes, seed)
    state = _optimizer(sizes).init(params)
    batches = windows(text()[0], sizes.steps * sizes.batch, sizes.context, seed)
    for pieces in batches.reshape(sizes.steps, sizes.batch, -1):
        params, state, _ = _step(params, state, pieces, sizes)
    return params


_loss = jax.jit(loss)


def validation_loss(params: dict[str, Any], sizes: Sizes, pieces: int = 512) -> float:
    """Return the loss on the validation text, the same pieces for every call."""
    batches = windows(text()[1], pieces, sizes.context, 0).reshape(-1, 64, sizes.context + 1)
    return float(np.mean([_loss(params, batch) for batch in batches]))
