"""Jaxprs: what an equation holds, and how it is evaluated by itself."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import ensure_compile_time_eval, eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

DECOMPOSITIONS = ("svd", "eigh")


# What jaxprs carry of names; nothing is known of them here.
_NAMELESS = jax.make_jaxpr(lambda: ())().jaxpr.debug_info


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation holds."""
    leaves = jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    for leaf in leaves:
        jaxpr = getattr(leaf, "jaxpr", leaf)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr


def holds_decomposition(jaxpr: Any) -> bool:
    """Return whether svd or eigh occurs in a jaxpr, however deep."""
    return any(
        eqn.primitive.name in DECOMPOSITIONS or any(map(holds_decomposition, inner_jaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


def bind(eqn: Any, arrays: list[Any], **changed: Any) -> list[Any]:
    """Return the results of an equation at other operands, parameters changed or not."""
    eqn = eqn.replace(params={**eqn.params, **changed})
    given = {x: array for x, array in zip(eqn.invars, arrays, strict=True) if isinstance(x, Var)}
    names = _NAMELESS._replace(arg_names=("",) * len(given), result_paths=("",) * len(eqn.outvars))
    alone = Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, names)
    return eval_jaxpr(alone, (), *given.values())


def abstract(closed: ClosedJaxpr) -> list[jax.ShapeDtypeStruct]:
    """Return what to trace a jaxpr anew with."""
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in closed.in_avals]


def same_types(one: Any, two: Any) -> bool:
    """Return whether two lists of abstract values have the same shapes and dtypes."""
    return [(x.shape, x.dtype) for x in one] == [(x.shape, x.dtype) for x in two]


def folded(eqn: Any, known: list[Callable[[], np.ndarray | None]]) -> Callable:
    """Return what evaluates an equation that depends on no input, and gives None for others."""
    memory: list[np.ndarray | None] = []

    def constant() -> np.ndarray | None:
        if not memory:
            memory.append(None)
            operands = [evaluate() for evaluate in known]
            small = eqn.outvars[0].aval.size <= 2**20
            if small and not eqn.effects and all(x is not None for x in operands):
                with ensure_compile_time_eval():
                    memory[0] = np.asarray(bind(eqn, operands)[0])
        return memory[0]

    return constant
