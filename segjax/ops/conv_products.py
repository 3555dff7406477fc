"""A convolution whose bits do not follow the number of threads of XLA's CPU client (which follows the number of devices).

There, a `lax` convolution is Eigen's contraction, which cuts the inner dimension up among the threads whenever that gives more parallel
work: with few output numbers, or few output channels. A matrix product is cut along its outputs alone. With jaxlib 0.10.2, 16 -> 16
channels on 8x8 pixels differ in the last bit between 2 and 4 threads as a convolution and not as products (which are 3.7 times as fast for
1280 -> 1280 channels on 8x8); from a million output numbers on, 1 to 16 threads gave the same bits as a convolution, 2 times as fast.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.conv import Padding, conv2d, product, same_padding
from segjax.typing import Array

_LARGE = 1 << 20  # output numbers from which the convolution is left one
_GATHERED = 1 << 24  # numbers up to which all taps are gathered for one product; beyond, a product a tap and a ninth of the memory


@partial(jax.jit, static_argnames=("stride", "padding"))  # traced once for a shape, as ops.conv's
def steady_conv2d(x: Array, kernel: Array, *, stride: int = 1, padding: Padding | None = None) -> Array:
    """`ops.conv.conv2d` of x [B,H,W,I] with kernel [kh,kw,I,O]: small ones on a CPU as products over their taps."""
    around = same_padding((kernel.shape[0], kernel.shape[1])) if padding is None else padding

    def products(x: Array, kernel: Array) -> Array:
        return _products(x, kernel, stride, around)

    def convolution(x: Array, kernel: Array) -> Array:
        return conv2d(x, kernel, stride=stride, padding=around)

    pixels = x.shape[0] * (x.shape[1] // stride) * (x.shape[2] // stride)
    if kernel.shape[-1] >= 8 and pixels * kernel.shape[-1] >= _LARGE:
        return convolution(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=products, default=convolution)


def _products(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    kh, kw, inputs, outputs = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    tap = lambda i, j: x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
    places = [(i, j) for i in range(kh) for j in range(kw)]
    if x.shape[0] * height * width * kh * kw * inputs <= _GATHERED:
        return product(jnp.concatenate([tap(i, j) for i, j in places], axis=-1), kernel.reshape(-1, outputs))
    total = product(tap(0, 0), kernel[0, 0])
    for i, j in places[1:]:
        total = total + product(tap(i, j), kernel[i, j])
    return total
