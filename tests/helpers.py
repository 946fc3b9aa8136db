"""What several test modules share: matrices, errors in multiples of eps, inner products, jaxprs.

Checks of values are written in NumPy, in double precision, on what the library returned.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FLOAT32 = pytest.param(np.float32, marks=pytest.mark.x32, id="float32")
COMPLEX64 = pytest.param(np.complex64, marks=pytest.mark.x32, id="complex64")
FLOAT64 = pytest.param(np.float64, id="float64")
COMPLEX128 = pytest.param(np.complex128, id="complex128")
DTYPES = [FLOAT32, COMPLEX64, FLOAT64, COMPLEX128]


def eps(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def double(x) -> np.ndarray:
    """An array in double precision, complex where it was."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def adjoint(x: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(x, -1, -2))


# ------------------------------------------------------------------------------------- matrices


def gaussian(shape, dtype=np.float64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return x.astype(dtype)


def orthonormal(m: int, k: int, dtype=np.float64, seed: int = 0) -> np.ndarray:
    """k orthonormal columns of length m, in double precision."""
    wide = np.complex128 if np.issubdtype(dtype, np.complexfloating) else np.float64
    return np.linalg.qr(gaussian((m, k), wide, seed))[0]


def with_values(values, m: int, n: int, dtype=np.float64, seed: int = 0) -> np.ndarray:
    """A matrix (m, n) with the given singular values."""
    values = np.asarray(values, np.float64)
    k = len(values)
    U, V = orthonormal(m, k, dtype, seed + 1), orthonormal(n, k, dtype, seed + 2)
    return ((U * values) @ adjoint(V)).astype(dtype)


def well_separated(m: int, n: int, dtype=np.float64, seed: int = 0) -> np.ndarray:
    """A matrix (m, n) with singular values 1, 1 + 1/2, ..., so that no gap amplifies rounding."""
    return with_values(1 + 0.5 * np.arange(min(m, n)), m, n, dtype, seed)


def hermitian(values, dtype=np.float64, seed: int = 0) -> np.ndarray:
    """A Hermitian matrix with the given eigenvalues."""
    values = np.asarray(values, np.float64)
    Q = orthonormal(len(values), len(values), dtype, seed)
    A = (Q * values) @ adjoint(Q)
    return ((A + adjoint(A)) / 2).astype(dtype)


def like(tree, seed: int = 0):
    """Gaussian arrays of the shapes and dtypes of a pytree: cotangents, tangents, weights."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        [jnp.asarray(gaussian(x.shape, x.dtype, seed + 10 * i)) for i, x in enumerate(leaves)]
    )


# --------------------------------------------------------------------------------------- errors


def error_in_eps(actual, desired) -> float:
    """Largest difference between two pytrees, relative to the largest entry of each leaf, in eps.

    The eps is that of the leaf of ``actual``. NaN counts as an infinite error.
    """
    worst = 0.0
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert np.shape(x) == np.shape(y), (np.shape(x), np.shape(y))
        difference = np.max(np.abs(double(x) - double(y)), initial=0)
        scale = np.max(np.abs(double(y)), initial=0)
        error = difference / (scale * eps(x.dtype)) if difference else 0.0
        worst = max(worst, error if np.isfinite(error) else np.inf)
    return worst


def assert_within(actual, desired, multiple: float) -> None:
    """Assert that two pytrees agree to a multiple of eps, leaf by leaf."""
    error = error_in_eps(actual, desired)
    assert error <= multiple, f"off by {error:.1f} eps, allowed {multiple} eps"


def assert_same_bits(actual, desired) -> None:
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def pairing(cotangent, tangent) -> float:
    """Re sum ct t: the inner product under which vjp is the transpose of jvp in JAX."""
    return sum(
        float(np.sum(double(x) * double(y)).real)
        for x, y in zip(jax.tree.leaves(cotangent), jax.tree.leaves(tangent), strict=True)
    )


def finite_differences(loss, A: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of a real loss in JAX's convention, by central differences of all entries.

    All perturbed matrices go through one vmapped program. For complex A it is d/dx - i d/dy.
    """
    basis = np.eye(A.size, dtype=A.dtype).reshape(A.size, *A.shape)
    directions = np.concatenate([basis, 1j * basis]) if np.iscomplexobj(A) else basis
    stack = np.concatenate([A + step * directions, A - step * directions])
    up, down = np.split(np.asarray(jax.jit(jax.vmap(loss))(jnp.asarray(stack))), 2)
    slopes = (up - down) / (2 * step)
    if np.iscomplexobj(A):
        return (slopes[: A.size] - 1j * slopes[A.size :]).reshape(A.shape)
    return slopes.reshape(A.shape)


# --------------------------------------------------------------------------------------- jaxprs


def equations(jaxpr, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every equation of a jaxpr and of the jaxprs it holds: (primitive, primitives around it)."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        yield name, inside
        for parameter in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(getattr(parameter, "jaxpr", parameter), "eqns"):
                yield from equations(parameter, (*inside, name))


def reference_pages() -> ModuleType:
    """The module that writes the reference of the site, docs/_hooks/api.py; in no package."""
    path = Path(__file__).resolve().parent.parent / "docs" / "_hooks" / "api.py"
    spec = importlib.util.spec_from_file_location("site_api", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
