"""`ruled`: a function with a derivative rule of its own that no transformation takes away.

`jax.custom_jvp` is not enough for second derivatives. Where JAX evaluates a program in part it puts
the body of a custom_jvp function in place of the function, "to build linear functions". It does so
inside `scan`, `map` and `fori_loop` as well, to move what is the same in all steps out of the loop,
and there the next derivative is still to come: `jax.hessian` and grad(grad) of such a loop are
wrong by 30 % to 100 %, silently (jax 0.10.2). A primitive is left alone, so the call is one here.
It also is where a function is applied to a tangent, which reverse mode then transposes: allowed for
arguments in which the function is linear and its own adjoint.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

# (primals, tangents) -> (results, their tangents), all flat; None for the tangent of an integer.
FlatRule = Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], list[Any]]]


class Ruled:
    """A function and its rule; `ruled` makes it.

    Attributes:
        function: (*arguments) -> pytree of arrays; must not close over tracers.
        static: which of its arguments are no arrays and come first in the rule.
        self_adjoint: which argument, if any, is a tuple of arrays in each of which the function is
            linear over the reals and self-adjoint in Re tr(X^H Y).
        rule: (*static arguments, primals, tangents) -> (results, their tangents).
    """

    def __init__(
        self, function: Callable[..., Any], static: tuple[int, ...], self_adjoint: int | None
    ):
        self.function, self.static, self.self_adjoint = function, static, self_adjoint
        self.rule: Callable[..., tuple[Any, Any]] | None = None
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def defjvp(self, rule: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
        """Set the rule; a decorator."""
        self.rule = rule
        return rule

    def __call__(self, *arguments: Any) -> Any:
        """Return function(*arguments)."""
        assert self.rule is not None
        rule = self.rule
        held = [arguments[i] for i in self.static]
        moving = {i: x for i, x in enumerate(arguments) if i not in self.static}
        leaves, structure = jax.tree.flatten(tuple(moving.values()))
        if not any(isinstance(x, Tracer) for x in leaves):
            return self.function(*arguments)

        def flat(*leaves):
            rest = iter(structure.unflatten(leaves))
            every = range(len(arguments))
            return self.function(*(arguments[i] if i in self.static else next(rest) for i in every))

        def flat_rule(primals, tangents):
            pairs = zip(primals, tangents, strict=True)
            tangents = [_float0(x) if t is None else t for x, t in pairs]
            found = rule(*held, structure.unflatten(primals), structure.unflatten(tangents))
            results, tangents = (jax.tree.leaves(x) for x in found)
            return results, [None if _is_float0(t) else t for t in tangents]

        body, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        assert not any(isinstance(x, Tracer) for x in body.consts), "closes over a tracer"
        slots = [[i == self.self_adjoint] * len(jax.tree.leaves(x)) for i, x in moving.items()]
        self_adjoint = tuple(itertools.chain(*slots))
        results = ruled_p.bind(*leaves, body=body, rule=flat_rule, self_adjoint=self_adjoint)
        return jax.tree.structure(shapes).unflatten(results)


def _float0(x):
    return np.zeros(np.shape(x), jax.dtypes.float0)


def _is_float0(tangent):
    return getattr(tangent, "dtype", None) == jax.dtypes.float0  # Python's own numbers have none


def ruled(
    *, static: tuple[int, ...] = (), self_adjoint: int | None = None
) -> Callable[[Callable[..., Any]], Ruled]:
    """Return a decorator for functions that get a rule by ``defjvp``, as with `jax.custom_jvp`."""
    return lambda function: Ruled(function, static, self_adjoint)


ruled_p = Primitive("ruled_call")
ruled_p.multiple_results = True
# JAX 0.12 takes apart what holds a program with operations that it lowers in two stages, and the
# rule would go with it. The call stays whole; its body passes those stages when it is lowered.
setattr(ruled_p, "is_high", lambda *_, **__: False)  # noqa: B010, unknown to JAX 0.10


@ruled_p.def_impl
def evaluate(*arguments: Any, body: ClosedJaxpr, **_) -> list[Any]:
    """Return the results, by the body of the function."""
    return jaxpr_as_fun(body)(*arguments)


@ruled_p.def_effectful_abstract_eval
def _shapes(*avals, body, **_):
    if list(avals) != list(body.in_avals):  # another mesh than where it was traced
        body = jax.make_jaxpr(jaxpr_as_fun(body))(*avals)
    return body.out_avals, body.effects


def _jvp(primals, tangents, *, rule, **_):
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    tangents = [None if _is_float0(t) else t for t in tangents]
    results, tangents = rule(list(primals), tangents)
    zeros = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in results]
    return results, [z if t is None else t for z, t in zip(zeros, tangents, strict=True)]


def _transpose(cotangents, *arguments, **params):
    # Re sum ct T(t) = Re tr(conj(ct)^H T(t)) = Re sum conj(T(conj ct)) t.
    unknown = [ad.is_undefined_primal(x) for x in arguments]
    (cotangent,), i = cotangents, unknown.index(True)
    assert params["self_adjoint"][i], "no transpose in this argument"
    assert sum(unknown) == 1, "linear in one argument at a time"
    found: list[Any] = [None] * len(arguments)
    if type(cotangent) is not ad.Zero:
        conjugate = jnp.conj(cotangent)
        given = [conjugate if j == i else x for j, x in enumerate(arguments)]
        found[i] = jnp.conj(ruled_p.bind(*given, **params)[0])
    return found


def _spread_alike(arguments: list[Any], axes: Sequence[int | None]) -> list[Any]:
    """Return arguments whose mapped axes, the first ones, lie alike on an Explicit mesh.

    A cotangent may lie otherwise than what it belongs to, and `vmap` wants them all alike.
    """
    shardings = [jax.typeof(x).sharding for x in arguments]
    pairs = list(zip(shardings, axes, strict=True))
    first = next((s.spec[0] for s, i in pairs if i is not None and s.spec and s.spec[0]), None)
    if first is None:
        return arguments
    return [
        x
        if i is None or s.spec[0] == first
        else jax.sharding.reshard(x, NamedSharding(s.mesh, PartitionSpec(first, *s.spec[1:])))
        for x, (s, i) in zip(arguments, pairs, strict=True)
    ]


def _batch(arguments, axes, *, body, rule, self_adjoint):
    arguments = [
        x if i is None else jnp.moveaxis(x, i, 0) for x, i in zip(arguments, axes, strict=True)
    ]
    # What may be transposed gets a batch axis, as the result has one, sharded as that of others.
    batched = next(x for x, i in zip(arguments, axes, strict=True) if i is not None)
    zeros = jnp.zeros_like(jnp.sum(batched, axis=tuple(range(1, batched.ndim))))
    for j, x in enumerate(arguments):
        if axes[j] is None and self_adjoint[j]:
            arguments[j] = x[None] + zeros.astype(x.dtype).reshape(-1, *[1] * x.ndim)
    axes = [
        0 if i is not None or flag else None for i, flag in zip(axes, self_adjoint, strict=True)
    ]
    arguments = _spread_alike(arguments, axes)

    def batched_rule(primals, tangents):
        of_tangents = [None if t is None else i for t, i in zip(tangents, axes, strict=True)]
        return jax.vmap(rule, in_axes=(axes, of_tangents))(primals, tangents)

    body = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(body), in_axes=tuple(axes)))(*arguments)
    results = ruled_p.bind(*arguments, body=body, rule=batched_rule, self_adjoint=self_adjoint)
    return results, [0] * len(results)


ad.primitive_jvps[ruled_p] = _jvp
ad.primitive_transposes[ruled_p] = _transpose
batching.primitive_batchers[ruled_p] = _batch
mlir.register_lowering(ruled_p, mlir.lower_fun(evaluate, multiple_results=True))
