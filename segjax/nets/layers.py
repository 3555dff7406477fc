"""The layers that every network is made of: torch's semantics, NHWC, over the primitives of `segjax.ops`.

Parameters and statistics are float32; `dtype` is the compute dtype. Kernels are HWIO; a transposed kernel is [k, k, in, out] with
`kernel[i, j] = torch_weight[:, :, i, j]`.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jax.typing import DTypeLike

from segjax.ops import conv as ops
from segjax.ops import kept
from segjax.ops.depthwise import depthwise_conv2d
from segjax.ops.gelu import gelu
from segjax.ops.normalization import batch_norm, group_norm, layer_norm
from segjax.typing import Array

BN_MOMENTUM = 0.1
"""Weight of the new batch in BatchNorm's running statistics (torch's convention)."""


def replicated(kernel: Array) -> Array:
    """The kernel, whole on every device at its use: a kernel sharded over `fsdp` must not shard the activations by channel."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, jax.sharding.PartitionSpec())


def by_rows(x: Array) -> Array:
    """Rows of a batch [B,...] spread over every device of the mesh, as they came; as it is where the devices do not divide them.

    Said at the input of each layer, or the compiler may choose to split a scanned network's channels over `fsdp`, as its kernels are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(mesh.axis_names))


def parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> Array:
    """`module.param(name, init, shape)`, which traces a parameter's initial value at every call only to hold its shape against the one
    that is there; here the shapes are compared, which takes a tenth to a fifth off a step's tracing. For arrays in a compact `__call__`."""
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, init, shape)
    kept = module.get_variable("params", name)
    if kept.shape != tuple(shape):
        raise ScopeParamShapeError(name, "/".join(module.path), kept.shape, shape)
    return kept


class Conv(nn.Module):
    """Convolution with torch's padding. `padding=None` keeps the size at stride 1."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = parameter(self, "kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        padding = None if self.padding is None else ((self.padding, self.padding), (self.padding, self.padding))
        kernel = replicated(kernel.astype(self.dtype))
        y = ops.conv2d(by_rows(x.astype(self.dtype)), kernel, stride=self.stride, dilation=self.dilation, padding=padding)
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return kept.narrow(y, x)


class DepthwiseConv(nn.Module):
    """One `kernel_size` x `kernel_size` kernel [k,k,1,C] a channel, with torch's padding. `padding=None` keeps the size at stride 1."""

    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int | None = None
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = parameter(self, "kernel", self.kernel_init, (self.kernel_size, self.kernel_size, 1, x.shape[-1]))
        padding = None if self.padding is None else ((self.padding, self.padding), (self.padding, self.padding))
        kernel = replicated(kernel.astype(self.dtype))
        y = depthwise_conv2d(x.astype(self.dtype), kernel, stride=self.stride, dilation=self.dilation, padding=padding)
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],)).astype(self.dtype)
        return y


class ConvTranspose(nn.Module):
    """Transposed convolution of stride 2 with a 2x2 or 3x3 kernel (see `ops.conv.conv_transpose2d`)."""

    features: int
    kernel_size: int = 2
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, output_size: tuple[int, int] | None = None) -> Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform", in_axis=-2, out_axis=-1)
        kernel = parameter(self, "kernel", init, (self.kernel_size, self.kernel_size, x.shape[-1], self.features))
        y = ops.conv_transpose2d(x.astype(self.dtype), replicated(kernel.astype(self.dtype)), output_size=output_size)
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


_VIEWS: contextvars.ContextVar[int] = contextvars.ContextVar("views", default=1)


@contextlib.contextmanager
def normalised_by_view(views: int) -> Iterator[None]:
    """While a network is traced in here, every BatchNorm in training takes `views` pictures of each image apart.

    The pictures of an image lie side by side, [B * views,...]; each view gets the statistics that a pass of its own would give it, and the
    running ones see the views one after the other: one pass with the numbers of several.
    """
    token = _VIEWS.set(views)
    try:
        yield
    finally:
        _VIEWS.reset(token)


class BatchNorm(nn.Module):
    """Batch normalisation over batch and space, as torch: biased variance to normalise, unbiased in the running statistics.

    Under `jit` with a sharded batch the statistics are those of the whole batch (synchronised). Statistics are float32.
    In training, views of one image may be taken apart (`normalised_by_view`).
    """

    epsilon: float = 1e-5
    momentum: float = BN_MOMENTUM
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        c = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (c,))
        bias = parameter(self, "bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,), jnp.float32)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return (x.astype(jnp.float32) * factor + (bias - running_mean.value * factor)).astype(self.dtype)
        views, x = _VIEWS.get(), x.astype(self.dtype)
        normalised: Any = batch_norm(x, scale, bias, self.epsilon, views)  # custom_vjp hides the return type
        y, means, variances = normalised
        if not self.is_initializing():
            n, keep = x.size // (views * c), 1 - self.momentum
            for view in range(views):
                running_mean.value = keep * running_mean.value + self.momentum * means[view]
                running_var.value = keep * running_var.value + self.momentum * variances[view] * (n / max(n - 1, 1))
        return y


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), one slope for all channels or one each; slope starts at 0.25."""

    per_channel: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = parameter(self, "slope", nn.initializers.constant(0.25), (x.shape[-1] if self.per_channel else 1,))
        return jnp.where(x >= 0, x, x * slope.astype(x.dtype))


class ChannelDropout(nn.Module):
    """Drop whole channels of an image with probability `rate` and scale the rest by 1 / (1 - rate) (torch's `Dropout2d`).

    Only in training and only where a "dropout" key is given, so statistics can be gathered without it.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if not train or self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0], 1, 1, x.shape[-1]))
        return x * (keep / (1 - self.rate)).astype(x.dtype)


class Dense(nn.Module):
    """y = x @ kernel + bias over the last axis; kernel [I,O]."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.truncated_normal(0.02)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = ops.product(x.astype(self.dtype), replicated(kernel.astype(self.dtype)))
        if self.use_bias:
            y = y + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return kept.narrow(y, x)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis; float32 statistics. On an NHWC image it is the public code's LayerNorm2d."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x.astype(self.dtype), scale, bias, self.epsilon)


class Dropout(nn.Module):
    """Drop single numbers with probability `rate` and scale the rest by 1 / (1 - rate); as `ChannelDropout` else."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if not train or self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, x.shape)
        return x * (keep / (1 - self.rate)).astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation of [B,...,C]; float32 statistics."""

    groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        return group_norm(x.astype(self.dtype), scale, bias, self.epsilon, self.groups)


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `rate` (a number or a traced scalar) and scale the rest by 1 / (1 - rate).

    Only in training and only where a "dropout" key is given (stochastic depth as in timm).
    """

    @nn.compact
    def __call__(self, x: Array, rate: "float | Array", train: bool) -> Array:
        if not train or not self.has_rng("dropout"):
            return x
        kept = jnp.asarray(1.0 - rate, jnp.float32)
        keep = jax.random.bernoulli(self.make_rng("dropout"), kept, (x.shape[0],) + (1,) * (x.ndim - 1))
        return x * (keep / kept).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the GELU of the OpenAI CLIP weights."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu, "silu": jax.nn.silu}
"""By the names that public config files use."""
