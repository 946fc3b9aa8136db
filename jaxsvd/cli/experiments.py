"""The three experiments of `python -m jaxsvd demo`: learn, compress, differentiate at a tie.

Each takes data that comes with scikit-learn and returns its figures.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsvd

K = 5  # singular vectors kept of the digits
RANKS = (5, 20, 50, 100)  # kept of the photograph
GAPS = np.logspace(-1, -7, 13)  # between two singular values near 2
DECAY = 0.1  # pulls the weights to 1: +5 to +8 points held out, on each of five splits
DRAWS = 16  # matrices for each gap


class Digits(NamedTuple):
    """Pixel weights learned through singular vectors; each pair is (before, after).

    Attributes:
        counts: digits learned from, digits held out.
        weights: the 64 learned weights.
        constant: which of the 64 pixels never change.
        labels: of the held-out digits.
        points: held-out digits in the singular subspace, (n, K).
        losses: of the digits learned from.
        training: accuracy on the digits learned from.
        held_out: accuracy on the others.
        by_digit: the same for each of the ten digits.
        all_pixels: held-out accuracy with all 64 pixels, unweighted.
        slope: derivative of the loss along its gradient, before.
        slope_difference: the same by a finite difference.
    """

    counts: tuple[int, int]
    weights: np.ndarray
    constant: np.ndarray
    labels: np.ndarray
    points: list[np.ndarray]
    losses: list[float]
    training: list[float]
    held_out: list[float]
    by_digit: list[np.ndarray]
    all_pixels: float
    slope: float
    slope_difference: float


class Photo(NamedTuple):
    """A photograph compressed to each of RANKS.

    Attributes:
        picture: (m, n, 3), from 0 to 1.
        compressed: the same at each rank, clipped to 0..1.
        values: singular values of each channel, (3, min(m, n)).
        storage: share of the numbers kept.
        promised: sqrt of the sum of the discarded s_i^2, relative to |A|_F (Eckart and Young).
        measured: |A - A_r|_F / |A|_F.
        psnr: of the clipped picture, in dB.
    """

    picture: np.ndarray
    compressed: list[np.ndarray]
    values: np.ndarray
    storage: list[float]
    promised: list[float]
    measured: list[float]
    psnr: list[float]


class Tie(NamedTuple):
    """One gradient at a repeated singular value, and near it.

    Attributes:
        exact: the gradient at the tie, (4, 4), from its closed form.
        found: the same through each of the functions named.
        errors: relative errors for each of GAPS, the median of DRAWS matrices (NaN as infinite).
    """

    exact: np.ndarray
    found: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return a @ b in full precision: the default is less on GPU and TPU."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _separation(points: jax.Array, onehot: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a softmax over squared distances to the class means.

    Only distances enter, so the loss is unchanged when the basis of the subspace turns: it keeps
    the contract of `core_svd`.
    """
    points = points / jnp.sqrt(jnp.mean(jnp.sum(points**2, axis=1)))
    means = product(onehot.T, points) / jnp.sum(onehot, axis=0)[:, None]
    squares = jnp.sum((points[:, None] - means[None]) ** 2, axis=-1)
    # The squared distances between class means are about 1 here: 10 makes the softmax decide.
    return -jnp.mean(jnp.sum(onehot * jax.nn.log_softmax(-10 * squares), axis=1))


def _nearest_mean(points: np.ndarray, labels: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the class whose mean is nearest, for each row of ``new``."""
    means = np.stack([points[labels == digit].mean(axis=0) for digit in range(10)])
    return np.argmin(((new[:, None] - means) ** 2).sum(axis=-1), axis=1)


def learn_digits(steps: int, seed: int = 0) -> Digits:
    """Learn pixel weights w such that the top singular subspace of A diag(w) separates the digits.

    A holds the centred training images as rows. The digits held out are looked at once, at the end.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (images / 16).astype(np.float32)
    parts = train_test_split(images, labels, test_size=797, random_state=seed, stratify=labels)
    train, test, train_labels, labels = map(np.asarray, parts)
    mean = train.mean(axis=0)
    train, test = train - mean, test - mean
    A, onehot = jnp.asarray(train), jax.nn.one_hot(train_labels, 10, dtype=jnp.float32)
    adam = optax.adam(0.05)

    def loss(theta):
        w = jnp.exp(theta)
        B = A * w[None]
        V = jaxsvd.core_svd(B, K).Vh.T  # the gradient goes through these vectors
        # Pixels that say nothing keep a weight near 1.
        return _separation(product(B, V), onehot) + DECAY * jnp.mean(theta**2), (w, V)

    @jax.jit
    def step(theta, state):
        (value, aside), gradient = jax.value_and_grad(loss, has_aux=True)(theta)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(theta, updates), state, value, gradient, aside

    start = theta = jnp.zeros(64, jnp.float32)
    first = state = adam.init(theta)
    with tqdm(range(steps), desc="learning pixel weights", unit="step") as progress:
        for i in progress:
            theta, state, value, *_ = step(theta, state)
            if i % 10 == 0:
                progress.set_postfix(loss=f"{float(value):.3f}", refresh=False)

    gradient = step(start, first)[3]
    slope = jnp.linalg.norm(gradient)
    ahead, behind = (step(start + h * gradient / slope, first)[2] for h in (0.02, -0.02))
    losses, points, training, held_out, by_digit = [], [], [], [], []
    for parameters in (start, theta):
        _, _, value, _, (w, V) = step(parameters, first)
        old, new = (x * np.asarray(w) @ np.asarray(V) for x in (train, test))
        right = _nearest_mean(old, train_labels, new) == labels
        losses.append(float(value))
        points.append(new)
        training.append(float(np.mean(_nearest_mean(old, train_labels, old) == train_labels)))
        held_out.append(float(np.mean(right)))
        by_digit.append(np.array([right[labels == digit].mean() for digit in range(10)]))
    return Digits(
        counts=(len(train), len(test)),
        weights=np.asarray(w),
        constant=np.ptp(train, axis=0) == 0,
        labels=labels,
        points=points,
        losses=losses,
        training=training,
        held_out=held_out,
        by_digit=by_digit,
        all_pixels=float(np.mean(_nearest_mean(train, train_labels, test) == labels)),
        slope=float(slope),
        slope_difference=float((ahead - behind) / 0.04),
    )


def compress_photo() -> Photo:
    """Compress a photograph, each colour channel by its own SVD."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("china.jpg").astype(np.float32) / 255
    channels = jnp.asarray(np.moveaxis(picture, -1, 0))  # a stack of three matrices, (3, m, n)
    U, S, Vh = jaxsvd.svd(channels, full_matrices=False)
    m, n = channels.shape[-2:]
    s, norm = np.asarray(S, np.float64), np.linalg.norm(picture.astype(np.float64))
    compressed, promised, measured, psnr = [], [], [], []
    for r in RANKS:
        kept = product(U[..., :r] * S[:, None, :r], Vh[:, :r])
        kept = np.moveaxis(np.asarray(kept, np.float64), 0, -1)
        promised.append(np.sqrt((s[:, r:] ** 2).sum()) / norm)
        measured.append(np.linalg.norm(picture - kept) / norm)
        compressed.append(np.clip(kept, 0, 1))
        psnr.append(-10 * np.log10(np.mean((picture - compressed[-1]) ** 2)))
    storage = [r * (m + n + 1) / (m * n) for r in RANKS]
    return Photo(picture, compressed, s, storage, promised, measured, psnr)


def _energy(factor: Callable[[jax.Array], jax.Array], A: jax.Array) -> jax.Array:
    """Return the energy of the vector (1, 2, 3, 4) in the top two left singular vectors."""
    b = jnp.arange(1, 5, dtype=A.dtype)
    return jnp.sum(product(factor(A)[:, :2].T, b) ** 2)


def _energy_gradient(A: np.ndarray) -> np.ndarray:
    """Return the exact gradient of `_energy`, in which s_1 - s_2 does not occur.

    df = 2 sum_{i <= 2 < j} (u_i.b)(u_j.b) (s_i u_j^T dA v_i + s_j u_i^T dA v_j) / (s_i^2 - s_j^2)
    """
    U, s, Vh = np.linalg.svd(A.astype(np.float64))
    c = U.T @ np.arange(1.0, 5.0)
    gradient = np.zeros_like(U)
    for i in (0, 1):
        for j in (2, 3):
            turned = s[i] * np.outer(U[:, j], Vh[i]) + s[j] * np.outer(U[:, i], Vh[j])
            gradient += 2 * c[i] * c[j] / (s[i] ** 2 - s[j] ** 2) * turned
    return gradient


FACTORS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "jnp.linalg.svd": lambda A: jnp.linalg.svd(A, full_matrices=False)[0],
    "jaxsvd.svd": lambda A: jaxsvd.svd(A, full_matrices=False)[0],
    "jaxsvd.core_svd": lambda A: jaxsvd.core_svd(A, 2)[0],
}


def differentiate_tie() -> Tie:
    """Differentiate a loss of singular vectors at singular values 2, 2, 1, 1/2, and near them."""
    random = np.random.default_rng(0)
    near = []
    for gap in np.repeat(GAPS, DRAWS):
        left, right = (np.linalg.qr(random.standard_normal((4, 4)))[0] for _ in range(2))
        near.append(left @ np.diag([2, 2 - gap, 1, 0.5]) @ right)
    # The tie itself stands first, diagonal: rounding a turned matrix would split it.
    stack = np.stack([np.diag([2, 2, 1, 0.5]), *near]).astype(np.float32)
    exact = np.stack([_energy_gradient(A) for A in stack])
    size = np.linalg.norm(exact, axis=(1, 2))
    found, errors = {}, {}
    for name, factor in FACTORS.items():
        gradients = jax.jit(jax.vmap(jax.grad(lambda A, factor=factor: _energy(factor, A))))
        result = np.asarray(gradients(stack))
        relative = np.linalg.norm(result - exact, axis=(1, 2))[1:] / size[1:]
        found[name] = result[0]
        relative = np.where(np.isnan(relative), np.inf, relative).reshape(len(GAPS), DRAWS)
        errors[name] = np.median(relative, axis=1)
    return Tie(exact[0], found, errors)
