"""Linear layers: a kernel of low rank, a kernel with a cap on its spectral norm."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import _checks, norms, track
from ..algorithms.products import product
from ..operators.base import operator as layer
from ..operators.base import static
from ..operators.compose import LowRank
from . import factors

METHODS = ("spectral", "random")


@layer
class LowRankLinear:
    """y = (x left) right + bias: a linear layer of rank r, with (m + n) r weights for m n.

    Attributes:
        left: (inputs, r).
        right: (r, outputs).
        bias: (outputs,), or None.

    Raises:
        TypeError: a factor is no array of numbers.
        ValueError: the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> kernel = jnp.outer(jnp.arange(3.0), jnp.ones(2))
        >>> layer = jaxsvd.layers.LowRankLinear.from_dense(kernel, 1)
        >>> print(layer(jnp.array([0.0, 1.0, 1.0])))
        [3. 3.]

    References:
        Khodak, Tenenholtz, Mackey and Fusi (2021), "Initialization and regularization of
        factorized neural layers": spectral initialisation and Frobenius decay.
    """

    left: jax.Array
    right: jax.Array
    bias: jax.Array | None = None

    def __post_init__(self):
        name = "LowRankLinear"
        left = _checks.array(name, self.left, "left")
        right = _checks.array(name, self.right, "right")
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise ValueError(
                f"{name}: `left`, `right` must have shapes (inputs, r), (r, outputs), got "
                f"{left.shape}, {right.shape}"
            )
        factors.bias_of(name, self.bias, right.shape[1])

    @classmethod
    def from_dense(cls, kernel: Any, rank: int, bias: Any = None) -> "LowRankLinear":
        """Return the layer whose product is nearest to a kernel: its truncated SVD, balanced.

        Args:
            kernel: (inputs, outputs).
            rank: static, 1 <= rank <= min(inputs, outputs).
            bias: (outputs,), or None.

        Returns:
            LowRankLinear in the dtype of the kernel.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "LowRankLinear.from_dense"
        kernel = factors.one_matrix(name, kernel)
        return cls(
            *factors.leading(name, kernel, rank), factors.bias_of(name, bias, kernel.shape[1])
        )

    @classmethod
    def init(
        cls,
        key: jax.Array,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        method: str = "spectral",
        bias: bool = True,
        dtype: DTypeLike = float,
    ) -> "LowRankLinear":
        """Return a layer to train from the start.

        "spectral" truncates a Gaussian kernel of variance 1 / inputs, so the leading singular
        values are those of a full layer; "random" draws both factors, of variances 1 / inputs and
        1 / r, so that outputs have the variance of the inputs.

        Args:
            key: from `jax.random.key`.
            inputs: static size of x.
            outputs: static size of y.
            rank: static, 1 <= rank <= min(inputs, outputs).
            method: "spectral" or "random".
            bias: whether there is one; zeros.
            dtype: of the weights.

        Returns:
            LowRankLinear.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "LowRankLinear.init"
        method = _checks.choice(name, "method", method, METHODS)
        first, second = jax.random.split(key)
        kernel = factors.random_kernel(name, first, inputs, outputs, dtype)
        zeros = jnp.zeros(outputs, dtype) if _checks.flag(name, "bias", bias) else None
        if method == "spectral":
            return cls(*factors.leading(name, kernel, rank), zeros)
        rank = _checks.static_int(name, "rank", rank, 1, min(inputs, outputs))
        right = factors.random_kernel(name, second, rank, outputs, dtype)
        return cls(kernel[:, :rank], right, zeros)

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """Return y (..., outputs) of x (..., inputs)."""
        x = factors.inputs_of("LowRankLinear", x, self.left.shape[-2])
        return factors.shifted(jnp.matmul(jnp.matmul(x, self.left), self.right), self.bias)

    @property
    def rank(self) -> int:
        """How many columns `left` has."""
        return self.left.shape[-1]

    def to_dense(self) -> jax.Array:
        """Return the kernel left @ right, (inputs, outputs)."""
        return product(self.left, self.right)

    def operator(self) -> LowRank:
        """Return the kernel as an operator, not multiplied out."""
        return LowRank(self.left, jnp.ones(self.rank, self.left.dtype), self.right)

    def truncate(self, rank: int) -> "LowRankLinear":
        """Return the nearest layer of a smaller rank, in O((inputs + outputs) r^2).

        Args:
            rank: static, 1 <= rank <= min(r, inputs, outputs).

        Returns:
            LowRankLinear with balanced factors.

        Raises:
            TypeError, ValueError: rank is no static int, or out of range.
        """
        most = min(*self.left.shape, self.right.shape[1])
        rank = _checks.static_int("LowRankLinear.truncate", "rank", rank, 1, most)
        return LowRankLinear(*factors.truncate(self.left, self.right, rank), self.bias)

    def frobenius_decay(self) -> jax.Array:
        """Return |left right|_F^2: weight decay of the kernel, not of its factors.

        Decaying the factors alone shrinks the nuclear norm of the product; this penalty acts as
        weight decay on the dense layer would. Cost O((inputs + outputs) r^2).

        Returns:
            A scalar, to be added to the loss with the factor of a decay.
        """
        return factors.squared_norm(self.left, self.right)


@layer
class SpectralLinear:
    """y = x W min(1, max_norm / s_1(W)) + bias: a linear layer that is max_norm-Lipschitz.

    Without a state s_1 is exact, with its derivative; with one it is carried from call to call at
    two products with W, as in `norms.spectral_step`, never above the true s_1 and near it after
    some steps. Only the cap is computed anew in every call: the kernel itself stays what the
    optimizer made of it.

    Cost: without a state that of `norms.spectral`.

    Attributes:
        kernel: (inputs, outputs).
        bias: (outputs,), or None.
        max_norm: number > 0; no leaf.

    Raises:
        TypeError: a weight is no array of numbers.
        ValueError: the shapes do not fit; max_norm <= 0.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> layer = jaxsvd.layers.SpectralLinear(jnp.diag(jnp.array([4.0, 1.0])))
        >>> print(layer(jnp.ones(2)))
        [1.   0.25]

    References:
        Miyato, Kataoka, Koyama and Yoshida (2018), equation 8; Gouk et al. (2021),
        "Regularisation of neural networks by enforcing Lipschitz continuity", algorithm 1.
    """

    kernel: jax.Array
    bias: jax.Array | None = None
    max_norm: float = static(default=1.0)

    def __post_init__(self):
        name = "SpectralLinear"
        kernel = factors.one_matrix(name, self.kernel)
        factors.bias_of(name, self.bias, kernel.shape[1])
        _checks.positive(name, "max_norm", self.max_norm)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        inputs: int,
        outputs: int,
        *,
        max_norm: float = 1.0,
        bias: bool = True,
        dtype: DTypeLike = float,
    ) -> "SpectralLinear":
        """Return a layer with a Gaussian kernel of variance 1 / inputs.

        Args:
            key: from `jax.random.key`.
            inputs: static size of x.
            outputs: static size of y.
            max_norm: number > 0.
            bias: whether there is one; zeros.
            dtype: of the weights.

        Returns:
            SpectralLinear.

        Raises:
            TypeError, ValueError: an argument does not fit, by name.
        """
        name = "SpectralLinear.init"
        kernel = factors.random_kernel(name, key, inputs, outputs, dtype)
        zeros = jnp.zeros(outputs, dtype) if _checks.flag(name, "bias", bias) else None
        return cls(kernel, zeros, max_norm)

    def init_state(self) -> track.TrackState:
        """Return the state before the first call with one; no part of the parameters."""
        return norms.spectral_init(self.kernel)

    def __call__(self, x: Any, *, key: Any = None, state: track.TrackState | None = None) -> Any:
        """Return y (..., outputs) of x (..., inputs); with a state, (y, next state)."""
        x = factors.inputs_of("SpectralLinear", x, self.kernel.shape[-2])
        if state is None:
            sigma, following = norms.spectral(self.kernel), None
        else:
            sigma, following = norms.spectral_step(self.kernel, state)
        y = factors.shifted(jnp.matmul(x, self._capped(sigma)), self.bias)
        return y if following is None else (y, following)

    def _capped(self, sigma: jax.Array) -> jax.Array:
        above = sigma > self.max_norm
        factor = jnp.where(above, self.max_norm / jnp.where(above, sigma, 1), 1)
        return self.kernel * factor.astype(self.kernel.dtype)

    def to_dense(self) -> jax.Array:
        """Return the capped kernel, (inputs, outputs)."""
        return self._capped(norms.spectral(self.kernel))
