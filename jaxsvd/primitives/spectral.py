"""`spectral_map` and `spectral_sum`: functions of the spectrum, right at every tie.

One `ruled` function D(f, W, A, E_1 .. E_n), the n-th Frechet derivative of the matrix function
in those directions, computed from constant numbers W. Its own derivative is D with one more
direction, plus D with each direction replaced by its tangent. Reverse mode transposes these; D is
self-adjoint in each direction, being the derivative of a gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, ensure_compile_time_eval, eval_jaxpr
from jax.flatten_util import ravel_pytree

from .. import _checks, _tolerances
from ..algorithms.products import PRECISION, power_of_two
from ..rules.spectral import Kind, Scalar, SingularValues, differentiate
from .batching import over_leading_axes, power_of_two_scale
from .ruled import ruled
from .svd import numbers


class Constants(NamedTuple):
    """What a function closes over, as explicit arguments.

    Attributes:
        moving: real arrays that are differentiated, a pytree.
        fixed: integer and boolean arrays.
        scale: the numbers W are those of A / scale.
        unit: what the differentiated argument is yet to be divided by; None if it is A / scale.
    """

    moving: Any
    fixed: Any
    scale: jax.Array
    unit: jax.Array | None = None


class Function:
    """A user's elementwise function as a static recipe: f(x, constants), traced at a scalar."""

    def __init__(self, name: str, apply: Callable[..., jax.Array], options: Scalar):
        self.name, self.apply, self.options = name, apply, options
        self._derived: dict[str, Function] = {}

    def scalar(self, constants: Constants) -> Scalar:
        """Return f for arrays of any shape, with the constants filled in."""
        return self.options._replace(f=lambda x: self.apply(x, constants))

    def slope(self) -> "Function":
        """Return f', counted as 0 in the null space where f'(0) != 0 (a subgradient of a kink)."""

        def apply(x, constants):
            # With respect to s = scale x: scale f'(s) may overflow where f'(s) does not.
            s = constants.scale.astype(x.dtype) * x
            at_s = constants._replace(scale=jnp.ones_like(constants.scale))
            return differentiate(lambda s: self.apply(s, at_s))(s)

        if "slope" not in self._derived:
            self._derived["slope"] = Function(
                self.name, apply, self.options._replace(drop_null=True)
            )
        return self._derived["slope"]

    def variation(self) -> "Function":
        """Return df/dc . dc; the moving constants of that function are (c, dc)."""

        def apply(x, constants):
            c, dc = constants.moving
            return jax.jvp(lambda c: self.apply(x, constants._replace(moving=c)), (c,), (dc,))[1]

        if "variation" not in self._derived:
            self._derived["variation"] = Function(self.name, apply, self.options)
        return self._derived["variation"]


def _traced(name: str, f: Callable, x: Any, values: str) -> tuple[Any, Any]:
    """Return the jaxpr of f at x and the shape of its result, or raise if f cannot take x."""
    try:
        return jax.make_jaxpr(f, return_shape=True)(x)
    except (TypeError, ValueError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise TypeError(
            f"{name}: `f` must act elementwise on arrays of any shape and be traceable by JAX, got "
            f"{_checks.describe(f)}, which fails on {values} ({reason})"
        ) from error


def _from_user(
    name: str, f: Any, like: jax.Array, near_tie: float | None
) -> tuple[Function, Constants]:
    """Return a user's f as a static recipe and its constants, or raise if it is not elementwise.

    It is traced at ``like``, a scalar made from the matrix: under `shard_map` that scalar varies
    over the mesh as the singular values do, and so then do the constants of the recipe.
    """
    _checks.function(name, "f", f)
    dtype = like.dtype
    closed, shape = _traced(name, f, like, "a single value")
    if jax.tree.structure(shape) != jax.tree.structure(0) or shape.shape != ():
        raise ValueError(
            f"{name}: `f` must act elementwise, one number out for each number in, got "
            f"{jax.tree.map(lambda s: s.shape, shape)} for a single value"
        )
    if shape.dtype != dtype:
        raise TypeError(
            f"{name}: `f` must return the dtype it is given, {dtype}, got {shape.dtype}"
        )
    _probe_elementwise(name, f, dtype)
    is_moving = [jnp.issubdtype(c.dtype, jnp.inexact) for c in closed.consts]
    if any(jnp.issubdtype(c.dtype, jnp.complexfloating) for c in closed.consts):
        raise TypeError(f"{name}: `f` must close over real numbers, got a complex array")

    def of_scalar(x, constants):
        moving, fixed = iter(constants.moving), iter(constants.fixed)
        consts = [next(moving) if flag else next(fixed) for flag in is_moving]
        return eval_jaxpr(closed.jaxpr, consts, constants.scale.astype(x.dtype) * x)[0]

    def apply(x, constants):
        flat = jax.vmap(lambda x: of_scalar(x, constants))(x.reshape(-1))
        return flat.reshape(x.shape)

    near_tie = _tolerances.near_tie(dtype) if near_tie is None else near_tie
    moving = [c for c, flag in zip(closed.consts, is_moving, strict=True) if flag]
    fixed = [c for c, flag in zip(closed.consts, is_moving, strict=True) if not flag]
    one = jnp.ones((), dtype)
    return Function(name, apply, Scalar(lambda x: x, near_tie)), Constants(moving, fixed, one)


def _probe_elementwise(name: str, f: Callable, dtype) -> None:
    """Compare f on two values at once with f on each, with stand-ins for what it closes over."""
    points = np.array([0.375, 0.8125], dtype)
    both, shape = _traced(name, f, points, "two values")
    one = jax.make_jaxpr(f)(points[0])

    def stand_in(constant):
        if isinstance(constant, Tracer):
            values = np.linspace(0.25, 0.75, int(np.prod(constant.shape)))
            return jnp.asarray(values.reshape(constant.shape).astype(constant.dtype))
        return constant

    with ensure_compile_time_eval():
        together = eval_jaxpr(both.jaxpr, [stand_in(c) for c in both.consts], points)[0]
        alone = [
            eval_jaxpr(one.jaxpr, [stand_in(c) for c in one.consts], point)[0] for point in points
        ]
    tolerance = 100 * _tolerances.eps(dtype)
    if shape.shape != (2,) or not np.allclose(
        together, np.stack(alone), rtol=tolerance, atol=tolerance, equal_nan=True
    ):
        raise ValueError(
            f"{name}: `f` must act elementwise, got a function whose value at one singular value "
            "depends on the others; compute what depends on the whole spectrum outside and close "
            "over it"
        )


@ruled(static=(0, 1), self_adjoint=5)
def frechet(kind, f: Function, constants, W, a: jax.Array, directions: tuple) -> jax.Array:
    """Return the n-th Frechet derivative of the matrix function f at a, n = len(directions).

    Multilinear and symmetric in the directions, self-adjoint in each; n = 0 is the function itself.
    """
    tables = kind.tables(W, f.scalar(constants), a.shape)
    if len(directions) == 0:
        return kind.value(W, tables)
    if len(directions) == 1:
        return kind.first(W, tables, *directions)
    if len(directions) == 2:
        return kind.second(W, tables, *directions)
    third = getattr(kind, "third", None)
    if len(directions) == 3 and third is not None:
        return third(W, tables, *directions)
    known = (2 if third is None else 3) + f.name.endswith("_sum")  # whose gradient is a map
    highest = {2: "second", 3: "third", 4: "fourth"}[known]
    raise ValueError(
        f"{f.name}: derivatives up to the {highest} order exist, got a request for a higher one"
    )


def _along_constants(evaluate, f: Function, constants: Constants, d_moving) -> jax.Array | None:
    """Return the change of evaluate(f, constants) when the constants move, or None if none can.

    It is linear in f, so it is the value for df/dc_j times dc_j, one for each entry of the
    constants: evaluated on primal values only, as the next order of derivative needs it.
    """
    if not jax.tree.leaves(constants.moving):
        return None
    flat, unravel = ravel_pytree(constants.moving)
    steps = ravel_pytree(d_moving)[0]

    def along(row):
        return evaluate(f.variation(), constants._replace(moving=(constants.moving, unravel(row))))

    columns = jax.vmap(along, out_axes=-1)(jnp.eye(flat.size, dtype=flat.dtype))
    return jnp.matmul(columns, steps.astype(columns.dtype), precision=PRECISION)


def _split(unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two powers of two near the square root of ``unit`` whose product it is.

    Half of a division before the tables and half after: f'' E / unit has no order of its own in
    which a large E or a large f'' stays in range together with a small one.
    """
    half = power_of_two(jnp.sqrt(unit))
    return half, unit / half


@frechet.defjvp
def _frechet_jvp(kind, f, primals, tangents):
    constants, W, a, directions = primals
    d_constants, _, da, d_directions = tangents
    out = frechet(kind, f, constants, W, a, directions)

    def along(E, *others):
        return frechet(kind, f, constants, W, a, (*others, E))

    if constants.unit is None:
        tangent = along(da, *directions)
    else:
        before, after = (x.astype(a.dtype) for x in _split(constants.unit))
        tangent = along(da / before, *directions) / after
    for i, dE in enumerate(d_directions):
        tangent = tangent + along(dE, *directions[:i], *directions[i + 1 :])
    moved = _along_constants(
        lambda g, c: frechet(kind, g, c, W, a, directions), f, constants, d_constants.moving
    )
    return out, tangent if moved is None else tangent + moved


@ruled(static=(0, 1))
def total(kind: type[Kind], f: Function, constants, W, a: jax.Array) -> jax.Array:
    """Return sum_i f(s_i) as a function of the unscaled a and the constants of f."""
    del a
    # An f that maps NaN to a number must not hide it.
    undefined = jnp.where(jnp.isnan(constants.scale), jnp.nan, 1)
    return jnp.sum(f.scalar(constants).f(kind.values(W))) * undefined


@total.defjvp
def _total_jvp(kind, f, primals, tangents):
    constants, W, a = primals
    d_constants, _, da = tangents
    # In the units of a itself: the gradient may be in range where that of A / scale is not.
    in_units = constants._replace(unit=constants.scale)
    gradient = frechet(kind, f.slope(), in_units, W, a, ())
    tangent = jnp.sum(jnp.real(jnp.conj(gradient) * da))
    moved = _along_constants(lambda g, c: total(kind, g, c, W, a), f, constants, d_constants.moving)
    return total(kind, f, constants, W, a), tangent if moved is None else tangent + moved


def apply(
    name: str, f: Any, a: jax.Array, near_tie: float | None, of_matrix: Callable
) -> jax.Array:
    """Trace f, then call of_matrix(function, constants, a, a / scale) for each matrix of a."""
    dtype = a.dtype
    a = _checks.working(a)
    function, constants = _from_user(name, f, jnp.sum(jnp.real(a)), near_tie)

    def scaled(a):
        scale = power_of_two_scale(a)
        return of_matrix(function, constants._replace(scale=scale), a, a / scale.astype(a.dtype))

    return _checks.restore(over_leading_axes(scaled, a), dtype)


def spectral_map(f: Callable, a: Any, *, near_tie: float | None = None) -> jax.Array:
    """Return U f(S) V^H, a function of the singular values, with derivatives right at every tie.

        dY = U [D1 o herm P + D2 o skew P] V^H + (I - U U^H) dA V diag(q) V^H
             + U diag(q) U^H dA (I - V V^H),   P = U^H dA V
        D1_ij = (f_i - f_j)/(s_i - s_j),  D2_ij = (f_i + f_j)/(s_i + s_j),  q_i = f_i/s_i

    f is continued to negative arguments as an odd function. At repeated singular values the
    quotients become f', at zero ones f'(0), so first and second derivatives are exact there, where
    no rule on (U, S, Vh) can be. Where f(0) != 0 (polar: f = 1) the map has no derivative at a zero
    singular value; it gets the one at constant rank. Polar factor, soft and hard threshold, clip,
    powers, pseudoinverse and whitening are all this function.

    Cost: one SVD; a derivative about six products of m n k; a second derivative k tables of k x k.

    Args:
        f: elementwise function of an array of singular values, traceable; it may close over arrays
            and tracers, which are differentiated. What depends on the whole spectrum is computed
            outside and closed over.
        a: array (..., m, n), dtypes as in `svd`.
        near_tie: gap relative to the pair, |s_i - s_j| / (s_i + s_j), below which quadrature of f'
            replaces the difference quotient; default eps^(1/5)/2. Take sqrt(eps) for f with kinks.

    Returns:
        Array (..., m, n).

    Raises:
        TypeError: f is not a function or changes the dtype; ``a`` is not an array.
        ValueError: f is not elementwise; ``a`` has fewer than two axes; a third derivative.

    Example:
        The polar factor of an orthogonal matrix, all of whose singular values are tied:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.eye(2)
        >>> polar = lambda A: jaxsvd.spectral_map(jnp.ones_like, A)
        >>> dA = jnp.array([[1.0, 2.0], [0.0, 1.0]])
        >>> print(jnp.round(jax.jvp(polar, (A,), (dA,))[1], 4) + 0.0)
        [[ 0.  1.]
         [-1.  0.]]

    References:
        Noferini (2017), SIAM J. Matrix Anal. Appl. 38, theorem 3.2.
    """
    name = "spectral_map"
    a = _checks.matrix(name, a)
    near_tie = _checks.tolerance(name, "near_tie", near_tie, "the pair")

    def of_matrix(function, constants, _, a):
        if min(a.shape) == 0:
            return a
        return frechet(SingularValues, function, constants, numbers(a), a, ())

    return apply(name, f, a, near_tie, of_matrix)


def spectral_sum(f: Callable, a: Any, *, near_tie: float | None = None) -> jax.Array:
    """Return sum_i f(s_i), with gradient U f'(S) V^H and a Hessian that is right at ties.

    The gradient is a spectral map, so differentiating again is exact at repeated singular values,
    where the Hessian of jnp.sum(f(svdvals(A))) is not. With f'(0) != 0 (the nuclear norm: f = s)
    the sum has a kink at zero singular values, and the smallest subgradient is returned there.

    Cost: one SVD; the gradient one product of m n k; a Hessian-vector product about six.

    Args:
        f: elementwise function of an array of singular values, as in `spectral_map`.
        a: array (..., m, n), dtypes as in `svd`.
        near_tie: as in `spectral_map`, for f'.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: f is not a function or changes the dtype; ``a`` is not an array.
        ValueError: f is not elementwise; ``a`` has fewer than two axes.

    Example:
        The Hessian of |A|_F^2 is 2 I, at the identity as everywhere:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> H = jax.hessian(lambda A: jaxsvd.spectral_sum(jnp.square, A))(jnp.eye(2))
        >>> print(jnp.round(H.reshape(4, 4), 4) + 0.0)
        [[2. 0. 0. 0.]
         [0. 2. 0. 0.]
         [0. 0. 2. 0.]
         [0. 0. 0. 2.]]

    References:
        Lewis (1995), "The convex analysis of unitarily invariant matrix functions", theorem 3.1.
    """
    name = "spectral_sum"
    a = _checks.matrix(name, a)
    near_tie = _checks.tolerance(name, "near_tie", near_tie, "the pair")

    def of_matrix(function, constants, a, scaled):
        if min(a.shape) == 0:
            return jnp.zeros((), jnp.finfo(a.dtype).dtype)
        return total(SingularValues, function, constants, numbers(scaled), a)

    return apply(name, f, a, near_tie, of_matrix)
