"""Evaluation of a jaxpr with the derivatives of its decompositions replaced.

Every equation is bound as it stands, so values are those of the function itself. What differs:

    svd, eigh         the same primitive with the same parameters, with another derivative attached
    a sum of a term   (see `terms`) the same equation, with the derivative of the whole sum attached
    jit               traced anew where it holds one of these; terms pass into it and out of it
    scan, while, cond, checkpoint, custom_jvp that hold a decomposition: their bodies traced anew
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Primitive, primitives

from .._types import EighResult, SVDResult
from ..primitives.foreign import Source, attach, raw, with_own_rule
from ..primitives.ruled import ruled_p
from .axes import Summed, Value, flat_axes
from .jaxprs import (
    DECOMPOSITIONS,
    abstract,
    bind,
    folded,
    holds_decomposition,
    inner_jaxprs,
    same_types,
)
from .orders import of_index, sort
from .report import Log, is_of_jax
from .sums import propagate
from .terms import IDENTITY, ONE, SPECTRAL, Factor, Node, Sum, Term, Window, has_derivative, rule

FOREIGN_CODE = ("pure_callback", "io_callback", "debug_callback", "python_callback", "ffi_call")
KNOWN = frozenset(
    primitive.name
    for module in (lax, lax.linalg, primitives)
    for primitive in vars(module).values()
    if isinstance(primitive, Primitive)
) | {ruled_p.name}
SEEN_THROUGH = ("jit", "debug_print")  # of JAX, under names of their own


def _raw_outputs(source: Source) -> list[jax.Array]:
    """Return `raw` in the order of the primitive's outputs."""
    found = raw(source)
    if source.hermitian:
        return [found.eigenvectors, found.eigenvalues]
    return [found.S] if source.numbers is None else [found.S, found.U, found.Vh]


class Interpreter:
    """Evaluates one function; its log tells what was replaced."""

    def __init__(self):
        self.sources: dict[int, Source] = {}
        self.log = Log()

    # -------------------------------------------------------------------------------- evaluation

    def run(self, jaxpr: Any, consts: Any, values: list[Value]) -> list[Value]:
        """Return the outputs of a jaxpr."""
        env: dict[Any, Value] = {}

        def read(atom):
            if isinstance(atom, Literal):
                return Value(atom.val, constant=lambda: np.asarray(atom.val))
            return env[atom]

        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = Value(const)
        env.update(zip(jaxpr.invars, values, strict=True))
        for eqn in jaxpr.eqns:
            found = self.equation(eqn, [read(x) for x in eqn.invars])
            env.update(zip(eqn.outvars, found, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """Return the outputs of one equation."""
        with self.log.at(eqn):
            return self.evaluate(eqn, operands)

    def evaluate(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """Return the outputs of one equation, `called_at` being its line."""
        name = eqn.primitive.name
        terms = any(x.term is not None for x in operands)
        arrays = [x.array for x in operands]
        if name in DECOMPOSITIONS:
            self.use(eqn, operands)
            return self.decompose(eqn, operands[0].array)
        holds = any(map(holds_decomposition, inner_jaxprs(eqn)))
        ordered = any(x.order is not None for x in operands)
        if name == "jit" and (holds or terms or ordered):
            return self.call(eqn, operands)
        if holds:
            self.use(eqn, operands)
            return [Value(x) for x in self.higher_order(eqn, arrays)]
        if name in FOREIGN_CODE:
            self.log.leave(eqn, "code outside JAX")
        elif name not in KNOWN and name not in SEEN_THROUGH:
            self.log.leave(eqn, "a primitive that is not JAX's")
        if not terms:
            found = bind(eqn, arrays)
            if len(found) != 1:
                return [Value(x) for x in found]
            constant = folded(eqn, [x.constant for x in operands])
            order = of_index(eqn, operands)
            return [Value(found[0], None, flat_axes(eqn, operands), constant, order)]
        return self.with_terms(eqn, operands)

    def with_terms(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """Return the outputs of an equation some operands of which are terms."""
        arrays = [x.array for x in operands]
        if eqn.primitive.name == "sort":
            found = sort(eqn, operands, bind(eqn, arrays))
            if found is not None:
                return found
        if eqn.primitive.name == "custom_jvp_call":  # jax.nn.relu and the like: look inside
            found = self.inside_of_custom_jvp(eqn, operands)
        else:
            batches = {i: source.batch for i, source in self.sources.items()}
            found = propagate(eqn, operands, batches)
        if isinstance(found, Term):
            return [Value(bind(eqn, arrays)[0], found)]
        if isinstance(found, Summed):
            term, source = found.term, self.sources[found.term.index]
            if has_derivative(term, source):
                self.log.row(term.index, rule(term, source), eqn)
                leaves, structure = jax.tree.flatten((source, term))
                values = bind(eqn, [lax.stop_gradient(x) for x in arrays])[0]
                return [Value(attach(Sum(structure, found.finish), values, leaves))]
        self.use(eqn, operands)
        return [Value(x) for x in bind(eqn, arrays)]

    def inside_of_custom_jvp(self, eqn: Any, operands: list[Value]) -> Term | None:
        """Return the term that the body of an elementwise custom_jvp function leads to.

        Of JAX's own functions only, jax.nn.relu and the like: with others the rule may be meant to
        differ from the derivative of the body (straight-through estimators).
        """
        if not is_of_jax(eqn):
            return None
        closed = eqn.params["call_jaxpr"]
        with self.log.silent():  # its equations are bound as a whole, with the rule that it has
            found = self.run(closed.jaxpr, closed.consts, operands)
        term = found[0].term
        return term if len(found) == 1 and term is not None and not term.factors else None

    # ---------------------------------------------------------------------------- decompositions

    def decompose(self, eqn: Any, a: jax.Array) -> list[Value]:
        """Return the outputs of svd or eigh with our derivative, and what they are."""
        params, hermitian = eqn.params, eqn.primitive.name == "eigh"
        subset, n = params["subset_by_index"], a.shape[-1]
        if not (subset is None or (hermitian and tuple(subset) == (0, n))) or min(a.shape) == 0:
            self.log.leave(
                eqn, "a part of the spectrum alone" if subset else "nothing to decompose"
            )
            return [Value(x) for x in bind(eqn, [a])]
        values = bind(eqn, [lax.stop_gradient(a)])
        numbers = None
        if hermitian:
            numbers = EighResult(values[1], values[0])
        elif params["compute_uv"]:
            numbers = SVDResult(values[1], values[0], values[2])
        source = Source(a, numbers, hermitian, params.get("lower", True), params["algorithm"])
        arrays = attach(_raw_outputs, values, source)
        index = self.log.open(eqn, a.shape)
        self.sources[index] = source
        batch = tuple(None if n == 1 else i for i, n in enumerate(a.shape[:-2]))

        def of_values(array):
            axes, window = (*batch, SPECTRAL), Window(0, array.shape[-1])
            return Value(array, Term((), None, index, IDENTITY, axes, window))

        def of_vectors(array, slot):
            rows = slot == "Vh"
            axes = (*batch, SPECTRAL, None) if rows else (*batch, None, SPECTRAL)
            window = Window(0, array.shape[-2 if rows else -1])
            factors = (Factor(slot, False),)
            return Value(array, Term((), Node(None), index, ONE, axes, window, factors))

        if hermitian:
            return [of_vectors(arrays[0], "Q"), of_values(arrays[1])]
        slots = ("U", "Vh")[: len(arrays) - 1]
        vectors = [of_vectors(x, slot) for x, slot in zip(arrays[1:], slots, strict=True)]
        return [of_values(arrays[0]), *vectors]

    # ------------------------------------------------------------------------------ nested jaxprs

    def nested(self, name: str, jaxpr: Any, consts: Any, values: list[Value]) -> list[Value]:
        """Run a jaxpr that belongs to an equation of that name."""
        with self.log.within(name):
            return self.run(jaxpr, consts, values)

    def call(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """Return the outputs of a jit; terms and decomposed matrices go in and come out."""
        closed, name = eqn.params["jaxpr"], eqn.params["name"]
        plain = all(map(_unspecified, (*eqn.params["in_shardings"], *eqn.params["out_shardings"])))
        if not plain or any(eqn.params["donated_invars"]):
            self.use(eqn, operands)
            new = self.traced(f"jit {name}", closed)
            return [Value(x) for x in bind(eqn, [x.array for x in operands], jaxpr=new)]
        outer = self.sources
        needed = {x.term.index for x in operands if x.term is not None}
        known: list[tuple[Any, ...]] = []

        def inner(arrays, terms, sources):
            self.sources = dict(sources)
            values = [
                Value(array, term, x.flat, x.constant, x.order)
                for array, term, x in zip(arrays, terms, operands, strict=True)
            ]
            found = self.nested(f"jit {name}", closed.jaxpr, closed.consts, values)
            known.extend((x.flat, x.order) for x in found)
            leaving = {x.term.index for x in found if x.term is not None}
            new = {i: self.sources[i] for i in leaving if i not in sources}
            return [x.array for x in found], [x.term for x in found], new

        inner.__name__ = inner.__qualname__ = name
        compiled = jax.jit(
            inner, inline=eqn.params["inline"], keep_unused=eqn.params["keep_unused"]
        )
        try:
            arrays, terms, new = compiled(
                [x.array for x in operands],
                [x.term for x in operands],
                {i: outer[i] for i in needed},
            )
        finally:
            self.sources = outer
        self.sources.update(new)
        return [
            Value(array, term, flat, order=order)
            for array, term, (flat, order) in zip(arrays, terms, known, strict=True)
        ]

    def evaluated(self, name: str, jaxpr: Any, consts: Any):
        """Return a function of arrays that evaluates a jaxpr."""

        def function(*arrays):
            outer, self.sources = self.sources, {}
            try:
                found = self.nested(name, jaxpr, consts, [Value(x) for x in arrays])
                self.use(None, found)
                return [x.array for x in found]
            finally:
                self.sources = outer

        return function

    def traced(self, name: str, closed: ClosedJaxpr) -> ClosedJaxpr:
        """Return a jaxpr with its decompositions replaced."""
        function = self.evaluated(name, closed.jaxpr, closed.consts)
        new = jax.make_jaxpr(function)(*abstract(closed))
        if not same_types(new.out_avals, closed.out_avals):
            raise TypeError(f"{name}: {closed.out_avals} became {new.out_avals}")
        return new

    def higher_order(self, eqn: Any, arrays: list[Any]) -> list[Any]:
        """Return the outputs of an equation that holds a decomposition in a body of its own."""
        name, params = eqn.primitive.name, eqn.params
        if name == "scan" or name == "closed_call":
            key = "jaxpr" if name == "scan" else "call_jaxpr"
            return bind(eqn, arrays, **{key: self.traced(name, params[key])})
        if name == "while":
            bodies = {key: self.traced(name, params[key]) for key in ("cond_jaxpr", "body_jaxpr")}
            return bind(eqn, arrays, **bodies)
        if name == "cond":
            branches = tuple(self.traced(name, branch) for branch in params["branches"])
            return bind(eqn, arrays, branches=branches)
        if name in ("remat2", "checkpoint") and not params["differentiated"]:
            function = self.evaluated("checkpoint", params["jaxpr"], ())
            return jax.checkpoint(
                function, prevent_cse=params["prevent_cse"], policy=params["policy"]
            )(*arrays)
        if name == "shard_map" and "newly_manual_axes" in params:
            function = self.evaluated(name, params["jaxpr"], ())
            mapped = jax.shard_map(
                lambda *arrays: tuple(function(*arrays)),
                mesh=params["mesh"],
                in_specs=tuple(params["in_specs"]),
                out_specs=tuple(params["out_specs"]),
                axis_names=set(params["newly_manual_axes"]),
                check_vma=params["check_vma"],
            )
            return list(mapped(*arrays))
        if name == ruled_p.name:  # right as it stands
            return bind(eqn, arrays)
        if name == "custom_jvp_call":
            self.log.leave(eqn, "has a derivative of its own; its second derivative is made safe")
            return with_own_rule(lambda *x: tuple(bind(eqn, list(x))), _safe_rule, arrays)
        self.log.leave(eqn, "has a derivative of its own" if "custom" in name else "not known here")
        return bind(eqn, arrays)

    def use(self, eqn: Any, operands: list[Value]) -> None:
        """Note that terms are used as raw arrays, by an equation or as results."""
        if eqn is not None and eqn.primitive.name == "stop_gradient":
            return
        outputs = () if eqn is None else eqn.outvars
        if outputs and not any(jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in outputs):
            return
        for x in operands:
            if x.term is not None and jnp.issubdtype(x.array.dtype, jnp.inexact):
                self.log.row(x.term.index, "masked" if x.term.factors else "values", eqn)


def _safe_rule(closed: ClosedJaxpr, arrays: list[Any]) -> list[Any]:
    return Interpreter().evaluated("custom_jvp", closed.jaxpr, closed.consts)(*arrays)


def _unspecified(sharding: Any) -> bool:
    return type(sharding).__name__ == "UnspecifiedValue"
