"""A convolution of stride 1 in the form for TPUs and few images: the columns of an image are the batch of a convolution over its rows.

A TPU keeps the last two dimensions of an array in tiles of 8 x 128, and its convolutions want the batch where an image has its columns.
Of few images XLA makes a batch by cutting their rows to pieces, with a padded copy before each convolution and another behind it. Columns
as the batch leave the image [B,H,W,C] as it lies; images are a second spatial dimension, under a window of 1. Taps along a row are shifts
of the columns, added up in float32 as one convolution does. `scripts/tpu_forms.py` compares the two: a convolution and its gradients take
0.3 to 0.6 of the estimated cycles.
"""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.conv_gradients import Padding, lax_conv, transposed
from segjax.ops.per_device import images_of_a_device
from segjax.typing import Array

_OVER_ROWS = lax.ConvDimensionNumbers((2, 3, 0, 1), (3, 2, 0, 1), (2, 3, 0, 1))  # [B,H,W,I] with [1,kh,I,O]: W is the batch
_OVER_PIXELS = lax.ConvDimensionNumbers((3, 2, 0, 1), (3, 2, 0, 1), (2, 3, 0, 1))  # [B,H,W,I] with [B,h,W,O]: I is the batch, W is summed
# By the estimates of scripts/tpu_forms.py:
_IMAGES = 8  # of a device, from which they are batch enough: a tile's rows
_COLUMNS = 24  # below, there are too few of them
_WIDE, _THIN = 512, 64  # columns from which, and channels up to which, XLA's own kernel gradient is the slower one (VGG16's first block)


def columns_serve(x: Array, stride: int) -> bool:
    """Whether the stride is 1, and x [B,H,W,C] has columns enough and few images on each device of the mesh that they are spread over."""
    return stride == 1 and images_of_a_device(x) < _IMAGES and x.shape[2] >= _COLUMNS


def columns_conv(x: Array, kernel: Array, dilation: int, padding: Padding) -> Array:
    """`conv_gradients.lax_conv` of stride 1: x [B,H,W,I], kernel [kh,kw,I,O] -> [B,h,w,O] of x's type."""
    total = None
    for j, columns in enumerate(_shifted(x, kernel.shape[1], dilation, padding)):
        part = lax.conv_general_dilated(
            columns,
            kernel[:, j][None],
            (1, 1),
            ((0, 0), padding[0]),
            rhs_dilation=(1, dilation),
            dimension_numbers=_OVER_ROWS,
            preferred_element_type=jnp.float32,
        )
        total = part if total is None else total + part
    assert total is not None
    return total.astype(x.dtype)


def columns_gradients(x: Array, kernel: Array, dy: Array, *, dilation: int, padding: Padding) -> tuple[Array, Array]:
    """d loss / d x and d loss / d kernel, where dy [B,h,w,O] is d loss / d `columns_conv(x, kernel, dilation, padding)`.

    The kernel's gradient is XLA's own, which sums over whole images in any case: one a tap of a row costs the same cycles and twice the
    time to compile, but for wide images of few channels.
    """
    flipped, back = transposed(kernel, dilation, padding)
    dx = columns_conv(dy, flipped, dilation, back)
    if x.shape[2] < _WIDE or x.shape[3] > _THIN:
        return dx, *jax.vjp(lambda kernel: lax_conv(x, kernel, 1, dilation, padding), kernel)[1](dy)
    step, sides = (1, dilation), ((0, 0), padding[0])
    taps = [
        lax.conv_general_dilated(columns, dy, step, sides, dimension_numbers=_OVER_PIXELS)[0]
        for columns in _shifted(x, kernel.shape[1], dilation, padding)
    ]
    return dx, jnp.stack(taps, axis=1).astype(kernel.dtype)


def _shifted(x: Array, taps: int, dilation: int, padding: Padding) -> list[Array]:
    """For each tap of a row, the columns [B,H,w,I] that it meets, zero on padding."""
    left, right = padding[1]
    spare = dilation * (taps - 1)
    side = lambda j: (left - j * dilation, right - spare + j * dilation, 0)
    return [lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), side(j), (0, 0, 0))) for j in range(taps)]
