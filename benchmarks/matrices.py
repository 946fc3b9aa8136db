"""Matrices of known spectra and real ones, and the accuracy of triplets measured in float64."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def with_spectrum(m: int, n: int, s: np.ndarray, dtype: Any = np.float32, seed: int = 0):
    """Return a matrix (m, n) with the given singular values and random vectors."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((rows, len(s)), dtype))[0] for rows in (m, n))
    return np.ascontiguousarray((U * s.astype(dtype)) @ V.T)


def plateau(n: int, k: int) -> np.ndarray:
    """Return k values about 1, the others about 0.1, with 1 % of noise."""
    noise = 0.01 * np.random.default_rng(0).random(n)
    return np.sort(np.where(np.arange(n) < k, 1.0, 0.1) * (1 + noise))[::-1]


def spectra(n: int, k: int) -> dict[str, np.ndarray]:
    """Return n singular values of each kind that a top-k solver meets."""
    i = np.arange(1, n + 1)
    return {
        "i^-1/2": i**-0.5,
        "exponential": np.exp(-i / (0.6 * k)),
        "plateau with noise": plateau(n, k),
        "one gap": np.where(i <= k, 1.0 + 1.0 / i, 0.5 / i),
        "clustered": np.where(i <= k, 1.0 - 1e-4 * i, 0.5 - 1e-4 * i / n),
        "ties in the kept part": np.where(i <= k, 1.0 + (k - i) // 3, 0.5 / i),
        "rank below k": np.where(i <= k // 2, 1.0 / i, 0.0),
    }


def with_ratio(n: int, k: int, ratio: float) -> np.ndarray:
    """Return n singular values, s_{k+1} / s_k as given, those kept apart from each other."""
    i = np.arange(1, n + 1)
    return np.where(i <= k, 2.0 - 0.8 * i / k, 1.2 * ratio * (k + 1.0) / i)


def residual(a: Any, U: Any, S: Any, Vh: Any) -> float:
    """Return the largest residual on either side over s_1; ``a`` may be sparse."""
    U, S, V = np.float64(U), np.float64(S), np.float64(Vh).T
    a = a.astype(np.float64)
    right = np.linalg.norm(a @ V - U * S, axis=0).max()
    return max(right, np.linalg.norm(a.T @ U - V * S, axis=0).max()) / S.max()


def orthonormality(U: Any, Vh: Any) -> float:
    """Return the larger |X^T X - I|_F of both sides, in units of eps sqrt(k)."""
    unit = np.finfo(np.asarray(U).dtype).eps * np.shape(U)[1] ** 0.5
    sides = (np.float64(x) for x in (U, np.transpose(Vh)))
    return max(np.linalg.norm(X.T @ X - np.eye(X.shape[1])) for X in sides) / unit


def exact_gradient(loss: Any, A: np.ndarray, k: int) -> np.ndarray:
    """Return the gradient of a loss(U, S, Vh) of the top k, in closed form from all triplets."""
    import jax

    (m, n), r = A.shape, min(A.shape)
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    V = Vh.T
    ct_U, ct_S, ct_Vh = jax.grad(loss, (0, 1, 2))(U[:, :k], s[:k], Vh[:k])
    gU, gV, gS = np.zeros((m, r)), np.zeros((n, r)), np.zeros(r)
    gU[:, :k], gV[:, :k], gS[:k] = ct_U, np.transpose(ct_Vh), ct_S
    difference, total = s[None, :] - s[:, None], s[None, :] + s[:, None]
    D = np.divide(1, difference, where=difference != 0, out=np.zeros((r, r)))
    E = np.divide(1, total, where=total > 0, out=np.zeros((r, r)))
    s_inv = np.divide(1, s, where=s > 1e-13 * s[0], out=np.zeros(r))
    a, b = ((X - X.T) / 2 for X in (U.T @ gU, V.T @ gV))
    left, right = gU - U @ (U.T @ gU), gV - V @ (V.T @ gV)
    core = U @ (D * (a + b) + E * (a - b) + np.diag(gS)) @ Vh
    return core + (left * s_inv) @ Vh + (U * s_inv) @ right.T


def random_sparse(n: int, nonzeros: int, seed: int = 0) -> Any:
    """Return a SciPy CSR matrix (n, n), float32, rows and columns of decaying weight."""
    import scipy.sparse

    rng = np.random.default_rng(seed)
    indices = [(rng.pareto(1.0, nonzeros) * n / 50).astype(np.int64) % n for _ in range(2)]
    values = rng.standard_normal(nonzeros).astype(np.float32)
    return scipy.sparse.coo_matrix((values, tuple(indices)), shape=(n, n)).tocsr()


def docstrings(packages: tuple[str, ...]) -> Iterator[str]:
    """Yield the docstrings of all modules, classes and functions of installed packages."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for package in packages:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        for path in sorted(Path(found.origin).parent.rglob("*.py")):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, documented) and (text := ast.get_docstring(node)):
                    yield text


def term_document(packages: tuple[str, ...]) -> Any:
    """Return weighted term frequencies (documents, terms) of docstrings: a SciPy CSR, float32."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(min_df=2, dtype=np.float32).fit_transform(docstrings(packages))
