"""`safe`: the derivatives of another's svd and eigh, replaced."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer, eval_jaxpr

from .. import _checks
from .axes import Value
from .interpret import Interpreter
from .jaxprs import holds_decomposition
from .report import Replacement, SafeReport

# What a function raises that cannot be traced: it needs the numbers themselves.
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


CACHED = 256  # traces that are kept: an argument that is static may take any number of values


class Traced:
    """A function for arguments of one shape, with the derivatives replaced.

    Attributes:
        closed: its jaxpr, a function of ``consts`` and the arrays.
        consts: what the function closes over.
        report: what was replaced.
        finish: gives the results their structure.
        changed: whether there is anything to replace.
        keeps: whether it may be used again; not where it closes over tracers.
    """

    def __init__(self, function: Callable, structure: Any, fixed: dict, arrays: list[Any]):
        returned: list[Any] = []

        def flat(*arrays):
            moving = iter(arrays)
            leaves = [fixed[i] if i in fixed else next(moving) for i in range(structure.num_leaves)]
            args, kwargs = structure.unflatten(leaves)
            results, shape = jax.tree.flatten(function(*args, **kwargs))
            is_array = [_is_array(x) for x in results]
            constants = [None if flag else x for x, flag in zip(results, is_array, strict=True)]
            returned[:] = [shape, is_array, constants]
            return [x for x, flag in zip(results, is_array, strict=True) if flag]

        closed = jax.make_jaxpr(flat)(*arrays)
        self.shape, self.is_array, self.constants = returned
        self.consts = list(closed.consts)
        self.keeps = not any(isinstance(x, Tracer) for x in self.consts)
        interpreter = Interpreter()

        def evaluate(consts, arrays):
            found = interpreter.run(closed.jaxpr, consts, [Value(x) for x in arrays])
            interpreter.use(None, found)
            return [x.array for x in found]

        self.changed = holds_decomposition(closed.jaxpr)
        self.closed = jax.make_jaxpr(evaluate)(self.consts, arrays)
        self.report = interpreter.log.report()

    def __call__(self, arrays: list[Any]) -> Any:
        """Return the results of the function."""
        found = iter(eval_jaxpr(self.closed.jaxpr, self.closed.consts, *self.consts, *arrays))
        leaves = [
            next(found) if flag else x
            for x, flag in zip(self.constants, self.is_array, strict=True)
        ]
        return self.shape.unflatten(leaves)


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _key(structure: Any, fixed: dict, arrays: list[Any]) -> Any:
    """Return what a trace depends on, or None if that cannot be told."""
    config = tuple(
        getattr(jax.config, f"jax_{name}")
        for name in (
            "enable_x64",
            "default_matmul_precision",
            "numpy_dtype_promotion",
            "numpy_rank_promotion",
        )
    )
    held = tuple((i, type(x), x) for i, x in fixed.items())
    key = structure, held, tuple(jax.typeof(x) for x in arrays), config
    try:
        hash(key)
    except TypeError:
        return None
    return key


def safe(fn: Callable, *, report: bool = False) -> Callable:
    """Return fn with the derivatives of every `svd` and `eigh` of JAX in it made finite and right.

    Values stay the same, bit for bit: the same primitives run with the same parameters, and only
    their derivatives change, in forward and reverse mode, under `jit`, `vmap` and whatever else.
    They are found wherever they stand, in code that calls `jnp.linalg` somewhere deep inside too:
    nested in jit, scan, while_loop, cond, checkpoint, custom_jvp, shard_map. fn is traced, and
    where

        U f(S) Vh,  Q f(w) Q^H,  U f(S) U^H,  V f(S) V^H, truncated to a part of the spectrum or
        not, applied to other arrays or not (V (f(S) (U^H b))),  sum_i f(s_i)

    can be seen in it, however it is written (sorted, reversed, by einsum or diag, for a stack or
    under vmap; f may hold what is computed elsewhere), the derivative is that of `spectral_map`,
    `hermitian_map`, `core_svd`, `spectral_sum`, ...: right at ties, to second order too. Elsewhere
    singular vectors get the rule of `svd` and `eigh` of this library, with the terms that do not
    exist at ties and zeros dropped: right at distinct values, and at ties for losses that do not
    tell the tied vectors apart; other losses have no derivative there (nor do those that depend on
    the phases that LAPACK gives complex vectors). The report says which.

    Left as it is, and named in the report: what cannot be traced (functions that need the numbers
    themselves: if, NumPy), callbacks, functions with a custom_vjp (and the first derivative of
    those with a custom_jvp: `jnp.linalg.pinv`, whose own is right), primitives that are not JAX's
    own. Derivatives that fn itself takes are beyond its reach:
    `jax.grad(jaxsvd.safe(loss))`, not `jaxsvd.safe(jax.grad(loss))`.

    Cost: none under `jit`, the program is the same; a derivative costs what its rule does. Without
    `jit`, fn is traced once for each shape of its arguments, as by `jit`: side effects in Python
    happen then, and it is evaluated operation by operation.

    Args:
        fn: a function of pytrees; arrays in them may be traced, all else is static.
        report: return (result, SafeReport) in place of the result.

    Returns:
        A function of the same arguments.

    Raises:
        TypeError: fn is not callable.

    Example:
        The gradient of a function that JAX differentiates to NaN (JAX's issue 8732):

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> def norm(A):
        ...     U, S, Vh = jnp.linalg.svd(A, full_matrices=False)
        ...     return jnp.linalg.norm((U * S[None, :]) @ Vh)
        >>> A = 2 * jnp.eye(2)
        >>> bool(jnp.isnan(jax.grad(norm)(A)).any())
        True
        >>> print(jnp.round(jax.grad(jaxsvd.safe(norm))(A), 4) + 0.0)
        [[0.7071 0.    ]
         [0.     0.7071]]
        >>> jaxsvd.safe(norm, report=True)(A)[1].rules()
        ('spectral_map',)

    References:
        The rules: `jaxsvd.rules.spectral`, `.hermitian`, `.core`, `.dense`, `.eigh`.
    """
    _checks.function("safe", "fn", fn)
    report = _checks.flag("safe", "report", report)
    known: dict[Any, Traced] = {}

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        fixed = {i: x for i, x in enumerate(leaves) if not _is_array(x)}
        arrays = [x for x in leaves if _is_array(x)]
        key = _key(structure, fixed, arrays)
        traced = known.get(key)
        if traced is None:
            try:
                traced = Traced(fn, structure, fixed, arrays)
            except UNTRACEABLE as error:
                note = f"cannot be traced: {str(error).splitlines()[0]}"
                name = getattr(fn, "__name__", type(fn).__name__)
                left = SafeReport((Replacement(name, "left", (), "unknown", note=note),))
                result = fn(*args, **kwargs)
                return (result, left) if report else result
            if len(known) >= CACHED:
                known.clear()
            if key is not None and traced.keeps:
                known[key] = traced
        result = traced(arrays) if traced.changed else fn(*args, **kwargs)
        return (result, traced.report) if report else result

    return wrapped
