"""Batch whitening: features without correlation and of variance one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from ..algorithms.products import adjoint, product
from ..linalg import whitening
from ..operators.base import operator as layer
from ..operators.base import static
from . import factors


class WhitenState(NamedTuple):
    """Running statistics of the features; no parameters: nothing of it is differentiated.

    Attributes:
        mean: (features,).
        cov: (features / group, group, group).
    """

    mean: jax.Array
    cov: jax.Array


@layer
class Whiten:
    """y = scale (x - mean) W + shift with W = (cov + eps I)^(-1/2): ZCA whitening of a batch.

        mean = E x,   cov = E (x - mean)^H (x - mean)     over all axes but the last

    In training the statistics are those of the batch, and gradients go through them, exact where
    eigenvalues are equal (the rule of `linalg.whitening`, which divides by sums of roots of
    eigenvalues only). Features are whitened in groups of consecutive ones, at less cost than all
    together and from smaller batches. The running statistics are a state beside the parameters:
    no optimizer and no weight decay reach them.

    Cost: one product of batch by features by group, one `eigh` of each group.

    Attributes:
        scale: (features,), or None.
        shift: (features,), or None.
        features: static size of the last axis.
        group: static; divides features; all features by default.
        momentum: share of the old in the running statistics, 0 <= momentum < 1.
        eps: added to the eigenvalues, > 0.

    Raises:
        TypeError: a weight is no array of numbers.
        ValueError: the shapes do not fit, a number is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> layer = jaxsvd.layers.Whiten.init(2)
        >>> x = jnp.array([[2.0, 1.0], [-2.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
        >>> y, state = layer(x, layer.init_state())
        >>> print(jnp.round(y.T @ y / 4, 3) + 0.0)
        [[1. 0.]
         [0. 1.]]

    References:
        Huang, Yang, Lang and Deng (2018), "Decorrelated batch normalization", algorithm 1.
    """

    scale: jax.Array | None
    shift: jax.Array | None
    features: int = static()
    group: int | None = static(default=None)
    momentum: float = static(default=0.9)
    eps: float = static(default=1e-5)

    def __post_init__(self):
        name = "Whiten"
        features = _checks.static_int(name, "features", self.features, 1, 2**31)
        for argument in ("scale", "shift"):
            value = getattr(self, argument)
            if value is not None and _checks.array(name, value, argument).shape != (features,):
                raise ValueError(
                    f"{name}: `{argument}` must have shape ({features},), got {value.shape}"
                )
        if self.group is not None:
            group = _checks.static_int(name, "group", self.group, 1, features)
            if features % group:
                raise ValueError(f"{name}: `group` must divide {features} features, got {group}")
        if isinstance(self.momentum, bool) or not 0 <= self.momentum < 1:
            raise ValueError(
                f"{name}: `momentum` must satisfy 0 <= momentum < 1, got {self.momentum}"
            )
        _checks.positive(name, "eps", self.eps)

    @classmethod
    def init(
        cls,
        features: int,
        *,
        group: int | None = None,
        momentum: float = 0.9,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: DTypeLike = float,
    ) -> "Whiten":
        """Return a layer with a scale of ones and a shift of zeros.

        Args:
            features: static size of the last axis.
            group: static; features whitened together, default all.
            momentum: share of the old in the running statistics.
            eps: added to the eigenvalues.
            affine: whether there are a scale and a shift.
            dtype: of these.

        Returns:
            Whiten.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        features = _checks.static_int("Whiten.init", "features", features, 1, 2**31)
        affine = _checks.flag("Whiten.init", "affine", affine)
        scale = jnp.ones(features, dtype) if affine else None
        shift = jnp.zeros(features, dtype) if affine else None
        return cls(scale, shift, features, group, momentum, eps)

    def init_state(self, dtype: DTypeLike = float) -> WhitenState:
        """Return the statistics before the first batch: mean zero, the identity."""
        group = self.group or self.features
        eye = jnp.eye(group, dtype=dtype)
        cov = jnp.broadcast_to(eye, (self.features // group, group, group))
        return WhitenState(jnp.zeros(self.features, dtype), cov)

    def __call__(
        self, x: Any, state: WhitenState, *, training: bool = True, key: Any = None
    ) -> tuple[jax.Array, WhitenState]:
        """Return y (..., features) of x (..., features), and the next state.

        Args:
            x: (..., features); in training of two samples at least.
            state: from `init_state` or the last call.
            training: static; True whitens by the batch and returns moved statistics, False whitens
                by the state and returns it as it was.
            key: not used.

        Returns:
            (y, WhitenState).

        Raises:
            TypeError: ``state`` is no WhitenState.
            ValueError: shapes do not fit; a single sample in training.
        """
        name = "Whiten"
        x = factors.inputs_of(name, x, self.features)
        group = self.group or self.features
        shapes = (self.features,), (self.features // group, group, group)
        if not isinstance(state, WhitenState):
            raise TypeError(
                f"{name}: `state` must come from init_state, got {_checks.describe(state)}"
            )
        if (state.mean.shape, state.cov.shape) != shapes:
            raise ValueError(
                f"{name}: `state` must have shapes {shapes}, got "
                f"{(state.mean.shape, state.cov.shape)}"
            )
        state = lax.stop_gradient(state)
        work = _checks.working(x).reshape(-1, self.features)
        mean, cov = (part.astype(work.dtype) for part in state)
        if _checks.flag(name, "training", training):
            if len(work) < 2:
                raise ValueError(f"{name}: `x` must hold two samples in training, got {len(work)}")
            mean = jnp.mean(work, axis=0)
        # (groups, samples, group)
        centered = (work - mean[None]).reshape(len(work), -1, group).swapaxes(0, 1)
        if training:
            cov = product(adjoint(centered), centered) / len(work)
            found = lax.stop_gradient(WhitenState(mean, cov))
            state = jax.tree.map(self._moved, state, found)
        eye = jnp.eye(group, dtype=cov.dtype)[None]
        y = product(centered, whitening(cov + self.eps * eye))
        y = y.swapaxes(0, 1).reshape(x.shape).astype(x.dtype)
        ends = tuple(range(x.ndim - 1))
        if self.scale is not None:
            y = y * jnp.expand_dims(self.scale, ends).astype(y.dtype)
        shift = None if self.shift is None else self.shift.astype(y.dtype)
        return factors.shifted(y, shift), state

    def _moved(self, old: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)
