"""A matrix on disk, larger than memory: truncated_svd of it against plain reading of the same file.

    python -m benchmarks.outofcore [--quick]

Writes 20 GB of float32 (400 MB with --quick) below the folder for temporary files (TMPDIR) and
removes them. The page cache is dropped before each pass, of ours and of the plain reader, which
reads the same file into one buffer of the same size. Memory is RssAnon, what the process holds
apart from the page cache, sampled every 10 ms. The residuals are measured by NumPy afterwards.
"""

import contextlib
import os
import tempfile
import threading
import time

import numpy as np

import jaxsvd
from jaxsvd.operators.rowblocks import BLOCK_BYTES, aligned
from jaxsvd.operators.sources import File

from .measure import Claim, Report, Row, main, status

K, N = 10, 4000


def write(path: str, m: int, n: int, rank: int = 40) -> None:
    """Write s_i = 1/i for i <= rank, singular vectors near orthonormal, and noise 1e-3 below."""
    rng = np.random.default_rng(0)
    V = np.linalg.qr(rng.standard_normal((n, rank)))[0].astype(np.float32)
    right = V.T / np.arange(1, rank + 1, dtype=np.float32)[:, None]
    rows = BLOCK_BYTES // (4 * n)
    # 1e-3 of s_1 in spectral norm over all rows, the same tile with changing signs.
    noise = rng.random((rows, n), np.float32) - np.float32(0.5)
    noise *= np.float32(3e-3 / (1 + (n / m) ** 0.5))
    header = {"descr": "<f4", "fortran_order": False, "shape": (m, n)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, m, rows):
            height = min(rows, m - start)
            block = rng.standard_normal((height, rank), np.float32) @ right
            signs = np.float32(1) - 2 * rng.integers(0, 2, (height, 1)).astype(np.float32)
            block += signs * noise[:height]
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def drop(path: str) -> None:
    """Drop a file from the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Cold(File):
    """A file that is dropped from the page cache before each pass."""

    def blocks(self, first, size, take):
        drop(str(self.path))
        return super().blocks(first, size, take)


def read(path: str, rows: int) -> float:
    """Return the seconds that plain reading takes, from a cold cache."""
    buffer = memoryview(aligned(rows, N, np.dtype(np.float32)).view(np.uint8).reshape(-1).data)
    drop(path)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


@contextlib.contextmanager
def peak_anonymous():
    """Give a list that holds the peak of RssAnon in bytes at the end."""
    peak, stop = [0], threading.Event()

    def sample():
        while not stop.is_set():
            peak[0] = max(peak[0], status("RssAnon:"))
            stop.wait(0.01)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def measured_residual(path: str, result) -> float:
    """Return the largest residual on either side relative to s_1, by NumPy."""
    U, S, Vh = (np.asarray(x) for x in result)
    A = np.load(path, mmap_mode="r")
    left = np.zeros(K)
    right = np.zeros((N, K))
    step = 8192
    for start in range(0, len(A), step):
        block, u = A[start : start + step], U[start : start + step]
        left += np.sum((block @ Vh.T - u * S).astype(np.float64) ** 2, axis=0)
        right += block.T @ u
    off = np.linalg.norm(right - Vh.T.astype(np.float64) * S, axis=0)
    return float(max(np.sqrt(left).max(), off.max()) / S[0])


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    m = 25_000 if quick else 1_250_000
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "matrix.npy")
        start = time.perf_counter()
        write(path, m, N)
        written = time.perf_counter() - start
        source = Cold("matrix.npy", path, 128, (m, N), np.float32)
        A = jaxsvd.operators.RowBlocks(source)
        jaxsvd.truncated_svd(A if quick else _head(path, A.rows), K, tol=1e-3)  # compiles
        plain = [read(path, A.rows)]
        with peak_anonymous() as peak:
            start = time.perf_counter()
            result, info = jaxsvd.truncated_svd(A, K, tol=1e-3, return_info=True)
            result.U.block_until_ready()
            ours = time.perf_counter() - start
        plain.append(read(path, A.rows))
        residual = measured_residual(path, result)
    passes = int(info.iterations)
    size = 4 * m * N
    case = f"{m} x {N} float32, {size / 1e9:.1f} GB, k = {K} to 1e-3"
    a_pass = sum(plain) / 2
    share = a_pass * passes / ours
    rows = [
        Row(case, "writing the file", written),
        Row(case, "plain reading, one pass", a_pass, note=f"{size / a_pass / 1e9:.2f} GB/s"),
        Row(
            *(case, "jaxsvd.truncated_svd", ours),
            memory=peak[0],
            error=residual,
            note=f"{passes} passes, {size * passes / ours / 1e9:.2f} GB/s",
        ),
    ]
    return Report(
        rows,
        [
            Claim(case, "residual by s_1, both sides, measured by NumPy", residual, 1e-3, False),
            Claim(case, "peak of RssAnon, bytes", peak[0], 2e9, False),
            Claim(case, "throughput by that of plain reading", share, 0.7),
        ],
        "residual by s_1",
    )


def _head(path: str, rows: int):
    """Return the first rows of the file, whole blocks and a part of one, to compile with."""
    return jaxsvd.operators.RowBlocks(np.load(path, mmap_mode="r")[: 2 * rows + rows // 2], rows)


if __name__ == "__main__":
    raise SystemExit(main("outofcore", run))
