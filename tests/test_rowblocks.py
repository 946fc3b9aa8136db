"""Matrices outside memory: every source and decomposition, few passes, little memory, resumed."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsvd
from jaxsvd import operators
from jaxsvd.algorithms import outofcore, passes
from jaxsvd.operators import RowBlocks
from jaxsvd.operators.sources import Sliced
from tests.helpers import (
    adjoint,
    assert_same_bits,
    double,
    eps,
    gaussian,
    with_values,
)

M, N = 60, 24
A = gaussian((M, N), np.float32)


class Counted(Sliced):
    """An array that counts the rows read, and can fail at a given count."""

    def __init__(self, a, fail_at=None):
        super().__init__("the counted array", a)
        self.read, self.fail_at = 0, fail_at

    def blocks(self, first, size, take):
        for block in super().blocks(first, size, take):
            if self.fail_at is not None and self.read + len(block) > self.fail_at:
                raise OSError(f"the disk is gone after {self.read} rows")
            self.read += len(block)
            yield block


class Blocks:
    """An iterable of row blocks of uneven heights."""

    def __init__(self, a, heights=(7, 1, 20, 32)):
        self.a, self.heights = a, heights

    def __iter__(self):
        at = 0
        for height in self.heights:
            yield self.a[at : at + height]
            at += height


def npy(folder, a, name="a.npy"):
    path = os.path.join(folder, name)
    np.save(path, a)
    return path


def hdf5(folder, a):
    h5py = pytest.importorskip("h5py")
    file = h5py.File(os.path.join(folder, "a.h5"), "w")
    file.create_dataset("a", data=a, chunks=(8, a.shape[1]))
    file.close()
    return h5py.File(os.path.join(folder, "a.h5"), "r")["a"]


def zarr(folder, a):
    zarr = pytest.importorskip("zarr")
    return zarr.array(a, chunks=(8, a.shape[1]))


SOURCES = {
    "path": npy,
    "memmap": lambda folder, a: np.load(npy(folder, a), mmap_mode="r"),
    "part of a memmap": lambda folder, a: np.load(
        npy(folder, np.concatenate([a[:5], a])), mmap_mode="r"
    )[5:],
    "array": lambda folder, a: a,
    "hdf5": hdf5,
    "zarr": zarr,
    "list": lambda folder, a: [a[:1], a[1:50], a[50:]],
    "iterable": lambda folder, a: Blocks(a),
}


# ------------------------------------------------------------------------------------- reading


@pytest.mark.x32
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_its_rows(source, tmp_path):
    B = RowBlocks(SOURCES[source](str(tmp_path), A), rows=16)
    assert B.shape == (M, N)
    assert B.dtype == np.float32
    for first in (0, 16, 21):
        blocks = [block.copy() for block in B.blocks(first)]
        np.testing.assert_array_equal(np.concatenate(blocks), A[first:])
        assert [len(block) for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    X, Y = gaussian((N, 2), np.float32), gaussian((M, 2), np.float32)
    np.testing.assert_allclose(B @ jnp.asarray(X), double(A) @ double(X), atol=1e-4)
    np.testing.assert_allclose(B.H @ jnp.asarray(Y), double(A).T @ double(Y), atol=1e-4)


@pytest.mark.x32
@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ">f4", np.int8, np.uint16, np.bool_, np.complex64]
)
@pytest.mark.parametrize("source", ["path", "array"])
def test_each_block_is_converted(dtype, source, tmp_path):
    a = (4 * A).astype(dtype)
    held = a
    if source == "path" and a.dtype == ml_dtypes.bfloat16:  # .npy has no name for it
        held = np.memmap(tmp_path / "a.raw", a.dtype, "w+", shape=a.shape)
        held[:] = a
        held.flush()
    elif source == "path":
        held = npy(tmp_path, a)
    B = RowBlocks(held, rows=16)
    assert B.dtype == (np.complex64 if a.dtype.kind == "c" else np.float32)
    found = np.concatenate([block.copy() for block in B.blocks()])
    np.testing.assert_array_equal(found, a.astype(B.dtype))


def test_blocks_are_bounded_and_the_thread_ends(tmp_path):
    handed = []

    class Watched(Sliced):
        def blocks(self, first, size, take):
            def note(rows):
                buffer = take(rows)
                handed.append(buffer.ctypes.data)
                return buffer

            yield from super().blocks(first, size, note)

    B = RowBlocks(Watched("the array", A), rows=4, ahead=3)
    for block in B.blocks():
        assert block.ctypes.data % 64 == 0  # JAX takes it without a copy
    assert len(handed) == 15
    assert len(set(handed)) <= 4
    with contextlib.closing(B.blocks()) as blocks:
        next(blocks)
    with pytest.raises(OSError, match="gone"):
        list(RowBlocks(Counted(A, fail_at=20), rows=4).blocks())
    assert not [t for t in threading.enumerate() if t.name == "jaxsvd-rows"]


def test_default_blocks_are_whole_chunks_of_8_mib(tmp_path):
    assert RowBlocks(A).rows == M
    large = np.broadcast_to(np.float32(1), (100_000, 1000))
    assert RowBlocks(large).rows == 2**23 // 4000

    class Chunked(Sliced):
        pass

    source = Chunked("the array", large)
    source.held = type("Held", (), {"chunks": (500, 1000)})
    assert RowBlocks(source).rows == 2000


# ----------------------------------------------------------------------------- decompositions


def assert_svd(a, result, k, tol):
    """Values to rounding, residuals on both sides, orthonormal columns, by NumPy."""
    a = double(a)
    U, S, Vh = map(double, result)
    exact = np.linalg.svd(a, compute_uv=False)
    assert U.shape == (a.shape[0], k)
    assert Vh.shape == (k, a.shape[1])
    np.testing.assert_allclose(S, exact[:k], atol=(50 * eps(result.S.dtype) + tol) * exact[0])
    assert np.linalg.norm(a @ adjoint(Vh) - U * S, axis=0).max() <= tol * exact[0]
    assert np.linalg.norm(adjoint(a) @ U - adjoint(Vh) * S, axis=0).max() <= tol * exact[0]
    for X in (U, adjoint(Vh)):
        assert np.abs(adjoint(X) @ X - np.eye(k)).max() < 100 * eps(result.S.dtype)


@pytest.mark.parametrize(
    ("shape", "k", "dtype"),
    [
        pytest.param((60, 24), 3, np.float32, marks=pytest.mark.x32),
        ((60, 24), 24, np.float64),
        ((7, 300), 7, np.float64),
        ((1, 5), 1, np.float64),
        ((5, 1), 1, np.float64),
    ],
)
def test_truncated_svd(shape, k, dtype):
    a = gaussian(shape, dtype)
    result, info = jaxsvd.truncated_svd(RowBlocks(a, rows=9), k, return_info=True)
    assert info.converged
    assert_svd(a, result, k, 1e-5 if dtype == np.float32 else 1e-10)


SLOW = with_values(np.arange(1, 301) ** -0.5, 700, 300)


def test_slow_decay_needs_few_passes_and_each_reads_once():
    source = Counted(SLOW)
    result, info = jaxsvd.truncated_svd(RowBlocks(source, rows=100), 4, return_info=True)
    assert_svd(SLOW, result, 4, 1e-10)
    assert source.read == 700 * int(info.iterations)
    # Residuals of 1e-10 from blocks of 16 columns: as many products as block Krylov in memory.
    assert int(info.iterations) <= 14
    _, loose = jaxsvd.truncated_svd(RowBlocks(SLOW, rows=100), 4, tol=1e-3, return_info=True)
    assert int(loose.iterations) < int(info.iterations)
    again, warm = jaxsvd.truncated_svd(RowBlocks(SLOW, rows=100), 4, start=result, return_info=True)
    assert int(warm.iterations) < int(info.iterations)
    assert_svd(SLOW, again, 4, 1e-10)
    # Restarts: more blocks than the Krylov space holds.
    flat = with_values(1 - 1e-3 * np.arange(300), 700, 300)
    result, info = jaxsvd.truncated_svd(RowBlocks(flat, rows=100), 4, tol=1e-6, return_info=True)
    assert info.converged
    assert int(info.iterations) > 10
    assert_svd(flat, result, 4, 1e-6)
    _, cut = jaxsvd.truncated_svd(RowBlocks(flat, rows=100), 4, max_iterations=2, return_info=True)
    assert not cut.converged
    assert int(cut.iterations) == 4
    strict = jaxsvd.truncated_svd(RowBlocks(flat, rows=100), 4, max_iterations=2, strict=True)
    assert np.isnan(strict.S).all()


@pytest.mark.x32
def test_small_values_keep_the_promise_though_products_square_them():
    values = np.logspace(0, -4, 12)
    a = with_values(values, M, N, np.float32)
    result, info = jaxsvd.truncated_svd(RowBlocks(a, rows=16), 10, return_info=True)
    assert info.converged
    assert_svd(a, result, 10, 1e-5)
    # A residual from W alone would be off by eps s_1 / s_k = 4e-4.
    assert double(info.residuals).max() <= 1e-5
    np.testing.assert_allclose(result.S, values[:10], atol=1e-6)


@pytest.mark.x32
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_squares_neither_overflow_nor_vanish(size):
    a = (A * np.float32(size)).astype(np.float32)
    a[:16] *= np.float32(1e-10)  # the scale is found with the first block
    result = jaxsvd.truncated_svd(RowBlocks(a, rows=16), 3)
    exact = np.linalg.svd(double(a), compute_uv=False)
    np.testing.assert_allclose(double(result.S), exact[:3], rtol=1e-5)


def test_nan_and_zeros():
    a = A.copy()
    a[40, 3] = np.nan
    result, info = jaxsvd.truncated_svd(RowBlocks(a, rows=16), 3, return_info=True)
    assert all(np.isnan(x).all() for x in result)
    assert not info.converged
    result, info = jaxsvd.truncated_svd(RowBlocks(0 * A, rows=16), 3, return_info=True)
    assert np.all(result.S == 0)
    assert info.converged
    assert np.abs(double(result.U).T @ double(result.U) - np.eye(3)).max() < 1e-5


def test_operators_made_of_row_blocks():
    a = double(A)
    B = RowBlocks(a, rows=16)
    right = gaussian((N, 9))
    low = operators.LowRank(gaussian((M, 1)), np.ones(1), gaussian((1, N), seed=1))
    cases = {
        "centred": (operators.Centered.of_columns(B), a - a.mean(0)),
        "transpose of a complex one": (((1 + 2j) * B).T, (1 + 2j) * a.T),
        "product": (B @ operators.Dense(jnp.asarray(right)), a @ right),
        "sum": (B + low, a + double(low.to_dense())),
    }
    for name, (op, dense) in cases.items():
        result, info = jaxsvd.truncated_svd(op, 3, return_info=True)
        assert info.converged, name
        assert_svd(dense, result, 3, 1e-10)
        assert np.all(double(jaxsvd.residuals(op, result)) < 1e-9)
        start = jaxsvd.truncated_svd(op, 3, start=result)
        assert_svd(dense, start, 3, 1e-10)


@pytest.mark.parametrize("power_iterations", [0, 2])
def test_randomized_svd_is_that_of_the_matrix_in_memory(power_iterations):
    key = jax.random.key(1)
    source = Counted(SLOW)
    options = dict(power_iterations=power_iterations)
    result = jaxsvd.randomized_svd(key, RowBlocks(source, rows=99), 4, **options)
    assert source.read == 700 * (2 + power_iterations)
    found = jaxsvd.randomized_svd(key, RowBlocks(SLOW, rows=99), 4, return_info=True, **options)
    expected = jaxsvd.randomized_svd(key, jnp.asarray(SLOW), 4, return_info=True, **options)
    for x, y in zip((*result, *found[0]), (*expected[0],) * 2, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-11)
    np.testing.assert_allclose(found[1].residuals, expected[1].residuals, atol=1e-11)


def test_adaptive_svd():
    tol = 0.2
    key = jax.random.key(1)
    a = with_values(1 / np.arange(1, 301), 700, 300)
    result, info = jaxsvd.adaptive_svd(
        key, RowBlocks(a, rows=99), tol, max_rank=40, return_info=True
    )
    values = 1 / np.arange(1, 301)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1] / np.sum(values**2))
    smallest = np.argmax(tails <= tol)
    assert info.converged
    assert smallest <= int(info.rank) <= smallest + 1
    U, S, Vh = map(double, result)
    off = np.linalg.norm(a - (U * S) @ Vh) / np.linalg.norm(a)
    assert off <= tol
    assert abs(off - float(info.error)) < 1e-6
    with pytest.raises(TypeError, match="Frobenius norm is known, got Scaled"):
        jaxsvd.adaptive_svd(key, 2.0 * RowBlocks(a), tol, max_rank=40)


# ------------------------------------------------------------------------ stopped and taken up


@pytest.mark.parametrize("fail_at", [100, 650, 1000, 1950])
def test_a_run_that_stops_is_taken_up_to_the_same_bits(fail_at, tmp_path):
    path = tmp_path / "run.npz"
    a = SLOW[:, :120].astype(np.float32)  # one pass for the space, two for the triplets

    def factor(source):
        return jaxsvd.truncated_svd(RowBlocks(source, rows=50, checkpoint=path), 3, tol=2.5e-6)

    whole = Counted(a)
    expected = factor(whole)
    assert not path.exists()
    assert whole.read == 2100
    with pytest.raises(OSError, match="gone"):
        factor(Counted(a, fail_at))
    assert path.exists()
    rest = Counted(a)
    assert_same_bits(factor(rest), expected)
    assert rest.read == whole.read - fail_at // 50 * 50  # nothing is read twice
    assert not path.exists()


def test_the_state_is_a_pytree_saved_in_the_middle_of_a_pass():
    B = RowBlocks(SLOW, rows=100)
    config = outofcore.choose(*B.shape, k=4, tol=1e-8, max_passes=None)

    def steps(state, number):
        with contextlib.closing(passes.Stepper(B, config)) as step:
            while int(state.phase) != outofcore.DONE and number:
                state, number = step(state), number - 1
        return state

    start = outofcore.init(B, config, jax.random.key(0))
    expected = outofcore.finish(steps(start, -1), config)
    state = start
    while int(state.phase) != outofcore.DONE:  # saved and restored after every 5 of 7 blocks
        leaves, structure = jax.tree.flatten(steps(state, 5))
        state = structure.unflatten([np.array(leaf) for leaf in leaves])
    assert_same_bits(outofcore.finish(state, config), expected)


def test_checkpoints_of_other_computations_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    with pytest.raises(OSError, match="gone"):
        jaxsvd.truncated_svd(RowBlocks(Counted(A, 30), rows=16, checkpoint=path), 3)
    with pytest.raises(ValueError, match=r"must be of the same computation.*remove it to start"):
        jaxsvd.truncated_svd(RowBlocks(Counted(A), rows=16, checkpoint=path), 4)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="must be a file that a stopped run left"):
        jaxsvd.truncated_svd(RowBlocks(Counted(A), rows=16, checkpoint=path), 3)


# --------------------------------------------------------------------------------------- memory

MEMORY = """
    import sys, threading
    import numpy as np
    import jaxsvd

    path, m, n, k = sys.argv[1], 50_000, 1000, 4
    rng = np.random.default_rng(0)
    right = rng.standard_normal((8, n), np.float32) / 2.0 ** np.arange(8, dtype=np.float32)[:, None]
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (m, n)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(50):
            block = rng.standard_normal((1000, 8), np.float32) @ right
            file.write(block + rng.random((1000, n), np.float32) / 100)

    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(x.split()[1]) for x in file if x.startswith("RssAnon"))

    A = jaxsvd.operators.RowBlocks(path)
    few = np.load(path, mmap_mode="r")[: A.rows + m % A.rows]
    jaxsvd.truncated_svd(jaxsvd.operators.RowBlocks(few, A.rows), k)  # compiles
    before, peak, stop = anonymous(), [0], threading.Event()

    def watch():
        while not stop.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    result, info = jaxsvd.truncated_svd(A, k, return_info=True)
    result.U.block_until_ready()
    stop.set()
    thread.join()
    print((peak[0] - before) / 1000, bool(info.converged), int(info.iterations))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_200_megabytes_take_less_than_100(tmp_path):
    environment = dict(os.environ, JAX_ENABLE_X64="0", XLA_FLAGS="")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "a.npy")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    megabytes, converged, iterations = run.stdout.split()
    assert converged == "True"
    assert int(iterations) >= 2
    assert float(megabytes) < 100


def test_progress_is_shown_on_request(capsys):
    pytest.importorskip("tqdm")
    jaxsvd.truncated_svd(RowBlocks(A, rows=16, progress=True), 3)
    shown = capsys.readouterr().err
    assert "pass 3, residual" in shown
    assert "60/60" in shown
    jaxsvd.truncated_svd(RowBlocks(A, rows=16), 3)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------ bad input


def refused(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = npy(tmp_path, A)
    B = RowBlocks(path, rows=16)
    size = os.path.getsize(path)
    os.truncate(path, size - 2000)
    refused(
        lambda: RowBlocks(path),
        ValueError,
        rf"'a.npy' is truncated: expected {size} bytes for shape \(60, 24\) of float32, got",
    )
    refused(lambda: B.matmat(jnp.ones((N, 1), jnp.float32)), ValueError, "has changed since")
    (tmp_path / "b.npy").write_bytes(b"no array")
    refused(lambda: RowBlocks(tmp_path / "b.npy"), ValueError, "must be a .npy file, got")
    # Cut while it is read: before the sizes are compared, the block that misses bytes is named.
    B = RowBlocks(npy(tmp_path, A, "c.npy"), rows=16, ahead=1)
    blocks = B.blocks()
    next(blocks)
    os.truncate(tmp_path / "c.npy", size - 2000)
    refused(
        lambda: [next(blocks) for _ in range(9)],
        ValueError,
        r"(block 3 \(rows 48 to 59\)|block 2 \(rows 32 to 47\)) of file 'c.npy' ends early: "
        r"expected \d+ bytes, got \d+",
    )


def test_a_changed_file(tmp_path):
    path = npy(tmp_path, A)
    B = RowBlocks(path, rows=16)
    jaxsvd.truncated_svd(B, 2)
    os.utime(path, ns=(1, 1))
    refused(lambda: jaxsvd.truncated_svd(B, 2), ValueError, "'a.npy' has changed since it was")


def test_sources_that_cannot_serve(tmp_path):
    columns = npy(tmp_path, np.asfortranarray(A))
    refused(lambda: RowBlocks(columns), ValueError, "must be stored by rows, got Fortran order")
    refused(lambda: RowBlocks(A[0]), ValueError, r"must have shape \(m, n\), got \(24,\)")
    refused(lambda: RowBlocks(A[:0]), ValueError, r"must have shape \(m, n\), got \(0, 24\)")
    refused(lambda: RowBlocks(np.array([["a"]])), TypeError, "must hold numbers, got dtype <U1")
    refused(lambda: RowBlocks(3), TypeError, "`source` must be a path, .* got int 3")
    refused(lambda: RowBlocks(iter([A])), TypeError, "can be read once; jaxsvd.streaming")
    refused(lambda: RowBlocks([]), ValueError, "the list is empty: expected at least one row")
    refused(lambda: RowBlocks(A, rows=0), ValueError, "`rows` must satisfy 1 <= rows")
    refused(lambda: RowBlocks(A, ahead=0), ValueError, "`ahead` must satisfy 1 <= ahead")
    refused(lambda: RowBlocks(A, given_shape=(3, 4)), ValueError, r"`shape` must be that of")


class Once:
    """An iterable that is spent after the first time, though it does not say so."""

    def __init__(self, a):
        self.rows = iter([a])

    def __iter__(self):
        yield from self.rows


def test_blocks_that_are_wrong_are_named():
    X = jnp.ones((N, 1), jnp.float32)
    shape = dict(given_shape=(M, N), given_dtype=np.float32)

    def product(blocks):
        return lambda: RowBlocks(blocks, **shape, rows=16).matmat(X)

    narrow = [A[:20], A[20:, 1:]]
    sentence = r"block 1 of the list must have shape \(rows, 24\), got \(40, 23\)"
    refused(product(narrow), ValueError, sentence)
    refused(lambda: RowBlocks(narrow), ValueError, sentence)
    refused(
        product([A[:20], double(A[20:])]),
        TypeError,
        "block 1 of the list must have dtype float32, got float64",
    )
    refused(product([A[:20]]), ValueError, "the list ended early: expected 60 rows, got 20")
    refused(
        product([A, A]), ValueError, "block 1 of the list ends at row 120, expected 60 rows in all"
    )
    refused(
        lambda: jaxsvd.truncated_svd(RowBlocks(Once(A), **shape), 2),
        ValueError,
        "the Once ended early: expected 60 rows, got 0; a source must give all its rows each time",
    )


def test_inside_a_program_it_is_refused():
    B = RowBlocks(A, rows=16)
    sentence = "RowBlocks: .* must be called outside of jit, vmap and grad, got a traced value"
    refused(lambda: jax.jit(lambda c: c * jaxsvd.truncated_svd(B, 2).S)(1.0), TypeError, sentence)
    refused(lambda: jax.jit(lambda B: B @ jnp.ones(N, jnp.float32))(B), TypeError, sentence)
    scaled = lambda c: jaxsvd.truncated_svd(c * B, 2).S.sum()  # noqa: E731
    refused(lambda: jax.grad(scaled)(jnp.float32(2)), TypeError, sentence)
    refused(
        lambda: jaxsvd.truncated_svd(B, 2, method="gram"),
        ValueError,
        "`method` must be one of 'auto', 'krylov', got str 'gram'",
    )
