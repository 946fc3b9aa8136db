"""jaxsvd.models.robust on problems with a known answer and a certificate; jaxsvd.models.image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian, with_values
from sklearn.datasets import load_digits

from jaxsvd.models import image, robust

# ------------------------------------------------------------------ principal component pursuit


def hidden(m, n, rank, share, dtype=np.float64, seed=0, size=1.0):
    """A low-rank matrix as in Candes et al. (2011), section 4.1, and errors of random signs."""
    rng = np.random.default_rng(seed)
    L = gaussian((m, rank), dtype, seed) @ gaussian((rank, n), dtype, seed + 1) / (m * n) ** 0.5
    S = np.zeros(m * n, dtype)
    places = rng.choice(m * n, int(share * m * n), replace=False)
    phases = gaussian((places.size,), dtype, seed + 2)
    S[places] = size * phases / np.abs(phases)
    return L, S.reshape(m, n)


def distance(x, y):
    return np.linalg.norm(np.asarray(x) - y) / np.linalg.norm(y)


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_exact_recovery(share):
    L, S = hidden(100, 100, 5, share)
    found = robust.pursuit(L + S)
    assert distance(found.L, L) < 1e-6
    assert distance(found.S, S) < 1e-6
    np.testing.assert_array_equal(np.abs(found.S) > 1e-6, S != 0)
    assert found.info.rank == 5
    assert found.info.converged
    assert found.info.residual < 1e-8
    assert found.info.gap < 1e-6


@pytest.mark.x32
def test_single_precision_and_batches():
    pairs = [hidden(60, 40, 2, 0.05, np.float32, seed) for seed in (0, 5)]
    A = np.stack([10.0**i * (L + S) for i, (L, S) in zip((20, -20), pairs, strict=True)])
    found = robust.pursuit(A.astype(np.float32))
    assert found.L.dtype == np.float32
    assert np.all(found.info.converged)
    for i, (L, _) in zip(range(2), pairs, strict=True):
        assert distance(found.L[i] / 10.0 ** (20, -20)[i], L) < 1e-4
    alone = robust.pursuit(A[1].astype(np.float32))
    np.testing.assert_allclose(found.L[1], alone.L, atol=1e-24)


def test_complex_wide():
    L, S = hidden(40, 60, 2, 0.05, np.complex128)
    found = jax.jit(robust.pursuit)(L + S)
    assert distance(found.L, L) < 1e-6
    assert found.info.gap < 1e-6


def test_the_gap_bounds_the_distance_from_the_minimum():
    """Noise: nothing is recovered, but the problem is convex and its value known by its dual."""
    L, S = hidden(40, 30, 4, 0.1)
    A = L + S + 0.01 * gaussian((40, 30), seed=9)
    lam = 0.2

    def value(L):
        return np.linalg.norm(L, "nuc") + lam * np.sum(np.abs(A - L))

    best = robust.pursuit(A, lam, tol=1e-7, max_iterations=5000)
    assert best.info.converged
    assert best.info.gap < 1e-5
    early = robust.pursuit(A, lam, max_iterations=20)
    assert not early.info.converged
    excess = value(np.asarray(early.L)) / value(np.asarray(best.L)) - 1
    assert 0 < excess <= early.info.gap
    rng = np.random.default_rng(0)
    for scale in (1e-1, 1e-2, 1e-3):  # no feasible point near or far is below it
        other = np.asarray(best.L) + scale * rng.standard_normal(A.shape)
        assert value(other) > value(np.asarray(best.L)) * (1 - 1e-5)


def test_the_weight_decides_what_is_sparse():
    A = np.outer(np.arange(1.0, 7), np.ones(5))
    assert robust.pursuit(A, 10.0).info.rank == 1  # errors are dear
    np.testing.assert_allclose(robust.pursuit(A, 10.0).L, A, atol=1e-6)
    np.testing.assert_allclose(robust.pursuit(A, 1e-2).S, A, atol=1e-6)  # and cheap


def test_pursuit_of_zeros_and_of_nan():
    found = robust.pursuit(np.zeros((4, 3)))
    assert found.info.converged
    np.testing.assert_array_equal(found.L, np.zeros((4, 3)))
    assert (found.info.gap, found.info.rank) == (0, 0)
    for bad in (np.nan, np.inf):
        A = np.ones((4, 3))
        A[1, 1] = bad
        found = robust.pursuit(A)
        assert np.all(np.isnan(found.L))
        assert np.all(np.isnan(found.S))
        assert not found.info.converged
        assert found.info.iterations <= 2


def test_pursuit_messages():
    A = np.ones((3, 4))
    for call, error, message in (
        (lambda: robust.pursuit([[1.0]]), TypeError, "robust.pursuit: `a` must be an array"),
        (lambda: robust.pursuit(A[0]), ValueError, r"`a` must have shape \(..., m, n\)"),
        (lambda: robust.pursuit(A[:0]), ValueError, r"`a` must not be empty, got shape \(0, 4\)"),
        (lambda: robust.pursuit(A, 0.0), ValueError, "`lam` must be a number > 0, got float 0.0"),
        (lambda: robust.pursuit(A, "a"), TypeError, "`lam` must be a positive number"),
        (lambda: robust.pursuit(A, tol=2.0), ValueError, "`tol` is relative to the norm"),
        (lambda: robust.pursuit(A, max_iterations=0), ValueError, "`max_iterations` must satisfy"),
    ):
        with pytest.raises(error, match=message):
            call()


# ------------------------------------------------------------------------------------------- images


def decibels(a, b, peak):
    return 10 * np.log10(peak**2 / np.mean((np.float64(a) - np.float64(b)) ** 2))


@pytest.fixture(scope="module")
def photograph():
    """Digits side by side as an image of bytes, (64, 80)."""
    digits = load_digits().images[:80].reshape(8, 10, 8, 8)
    return (digits.transpose(0, 2, 1, 3).reshape(64, 80) * 15).astype(np.uint8)


def test_bytes_of_rank_k(photograph):
    k = 12
    small = image.compress(photograph, k)
    U, s, Vh = np.linalg.svd(photograph.astype(np.float64))
    best = np.clip(np.round((U[:, :k] * s[:k]) @ Vh[:k]), 0, 255)
    back = image.reconstruct(small)
    assert back.dtype == np.uint8
    assert np.max(np.abs(np.int64(back) - best)) <= 1  # a half may round either way
    np.testing.assert_allclose(small.psnr, decibels(back, photograph, 255), rtol=1e-5)
    assert small.storage == k * (64 + 80 + 1)
    assert small.ratio == 64 * 80 / small.storage
    assert small.ranks == (k,)
    whole = image.compress(photograph, 64)
    np.testing.assert_array_equal(image.reconstruct(whole), photograph)
    assert whole.psnr == np.inf


def test_colours_by_energy():
    """Each channel gets its own rank."""
    channels = [with_values(s, 20, 16, seed=i) for i, s in enumerate(([3, 1, 0.1], [2], [1, 1, 1]))]
    picture = np.stack([*channels, np.zeros((20, 16))], axis=-1)
    small = image.compress(picture, energy=0.95, peak=2.0)
    assert small.ranks == (2, 1, 3, 1)
    assert small.storage == 7 * (20 + 16 + 1)
    assert small.U.shape == (4, 20, 3)
    back = image.reconstruct(small)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back[..., 1:], picture[..., 1:], atol=1e-12)
    np.testing.assert_allclose(small.psnr, decibels(back, picture, 2.0), rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(back[..., 0] - picture[..., 0]), 0.1, rtol=1e-10)


@pytest.mark.x32
def test_compression_runs_in_jit_and_vmap_and_has_a_gradient():
    picture = np.abs(gaussian((9, 8, 3), np.float32))
    eager = image.compress(picture, 2)
    jitted = jax.jit(image.compress, static_argnums=1)(picture, 2)
    assert jitted.ranks == eager.ranks == (2, 2, 2)
    np.testing.assert_allclose(image.reconstruct(jitted), image.reconstruct(eager), atol=1e-5)
    stack = jnp.asarray(np.stack([picture, picture[::-1]]))
    many = jax.vmap(lambda x: image.reconstruct(image.compress(x, 2)))(stack)
    np.testing.assert_allclose(many[1], image.reconstruct(eager)[::-1], atol=1e-5)
    slope = jax.grad(lambda x: image.compress(x, 2).psnr)(stack[0])
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.x32
def test_half_precision_images():
    picture = jnp.asarray(np.abs(gaussian((8, 6), np.float32))).astype(jnp.bfloat16)
    small = image.compress(picture, 3)
    assert small.U.dtype == jnp.float32
    assert image.reconstruct(small).dtype == jnp.bfloat16


def test_image_bad_input(photograph):
    dirty = np.ones((4, 3))
    dirty[1, 1] = np.nan
    assert np.all(np.isnan(image.reconstruct(image.compress(dirty, 1))))
    assert np.isnan(image.compress(dirty, 1).psnr)
    for call, error, message in (
        (lambda: image.compress("a.png", 1), TypeError, "compress: `image` must be an array"),
        (lambda: image.compress(dirty + 1j, 1), TypeError, "must hold integers or floats"),
        (lambda: image.compress(dirty > 0, 1), TypeError, "must hold integers or floats"),
        (lambda: image.compress(dirty[0], 1), ValueError, r"must have shape \(H, W\) or"),
        (lambda: image.compress(dirty[:0], 1), ValueError, r"must have shape .*, got \(0, 3\)"),
        (lambda: image.compress(photograph), ValueError, "give `k` or `energy`, one of them"),
        (lambda: image.compress(photograph, 3, energy=0.5), ValueError, "one of them, got k=3"),
        (lambda: image.compress(photograph, 65), ValueError, "`k` must satisfy 1 <= k <= 64"),
        (lambda: image.compress(photograph, energy=0.0), ValueError, "0 < energy <= 1"),
        (lambda: image.compress(photograph, energy=1.1), ValueError, "<= energy <= 1, got 1.1"),
        (lambda: image.compress(photograph, energy="a"), TypeError, "`energy` must be a Python"),
        (lambda: image.compress(dirty, energy=0.5), ValueError, "`image` must be finite"),
        (lambda: image.compress(dirty, 1, peak=-1), ValueError, "`peak` must be a number > 0"),
        (
            lambda: jax.jit(lambda x: image.compress(x, energy=0.5))(dirty),
            TypeError,
            "`energy` must be used outside of jit",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
