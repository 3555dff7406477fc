"""Both gradients of a convolution by products and stride-1 convolutions, the form for CPUs; it serves scanned layers as well.

A strided kernel that fills its blocks of stride x stride (7x7 of stride 4 or 2, not 3x3 of stride 2) is a stride-1 convolution over space
to depth: for 7x7 of stride 4 that is 4 taps instead of 49, 3 times as fast and compiled in a tenth of the time. Otherwise dx is made of one
product a tap, phase by phase: no addition to every second pixel, which XLA turns into a scatter.
"""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

_ONE_PRODUCT = 4096  # output pixels up to which gathering all taps is cheaper than a product each (measured on 2 cores)
_WASTE = 1.5  # share of the blocks' taps over the kernel's own, up to which blocks are the faster form (measured: 1.31 is, 1.78 not)
Padding = tuple[tuple[int, int], tuple[int, int]]


def lax_conv(x: Array, kernel: Array, stride: int, dilation: int, padding: Padding) -> Array:
    """XLA's own convolution of x [B,H,W,I] with kernel [kh,kw,I,O]."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, None, (dilation, dilation), ("NHWC", "HWIO", "NHWC"))


def gradients(x: Array, kernel: Array, dy: Array, *, stride: int, dilation: int, padding: Padding) -> tuple[Array, Array]:
    """d loss / d x and d loss / d kernel, where dy [B,h,w,O] is d loss / d `lax_conv(x, kernel, stride, dilation, padding)`."""
    kh, kw = kernel.shape[:2]
    if stride > 1 and dilation == 1 and _blocks(kh, stride) * _blocks(kw, stride) * stride**2 <= _WASTE * kh * kw:
        return _gradients_of_blocks(x, kernel, dy, stride, padding)
    if stride == 1:
        dx = _input_gradient(kernel, dy, dilation, padding)
    else:
        dx = _strided_input_gradient(x, kernel, dy, stride, dilation, padding)
    return dx, _kernel_gradient(x, kernel, dy, stride, dilation, padding)


def _blocks(size: int, stride: int) -> int:
    return -(-size // stride)


def _gradients_of_blocks(x, kernel, dy, stride, padding):
    """The gradients of the stride-1 convolution of space-to-depth blocks, taken back to the pixels and taps that the blocks hold."""
    blocks = [(size - 1 + _blocks(k, stride), k) for size, k in zip(dy.shape[1:3], kernel.shape[:2], strict=True)]
    (rows, kh), (columns, kw) = blocks
    x, to_pixels = jax.vjp(lambda x: _block_image(x, stride, (rows, columns), padding), x)
    kernel, to_taps = jax.vjp(lambda kernel: _block_kernel(kernel, stride), kernel)
    none = ((0, 0), (0, 0))
    return *to_pixels(_input_gradient(kernel, dy, 1, none)), *to_taps(_kernel_gradient(x, kernel, dy, 1, 1, none))


def _block_image(x, stride, blocks, padding):
    """x [B,H,W,I] padded, as blocks [B,rows,columns,stride * stride * I]; what no output sees is cut off."""
    b, _, _, c = x.shape
    sides = [(low, n * stride - size - low, 0) for n, size, (low, _) in zip(blocks, x.shape[1:3], padding, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    return x.reshape(b, blocks[0], stride, blocks[1], stride, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, *blocks, -1)


def _block_kernel(kernel, stride):
    """kernel [kh,kw,I,O], filled up with zeros, as [rows,columns,stride * stride * I,O]."""
    kh, kw, i, o = kernel.shape
    rows, columns = _blocks(kh, stride), _blocks(kw, stride)
    kernel = jnp.pad(kernel, ((0, rows * stride - kh), (0, columns * stride - kw), (0, 0), (0, 0)))
    return kernel.reshape(rows, stride, columns, stride, i, o).transpose(0, 2, 1, 3, 4, 5).reshape(rows, columns, -1, o)


def transposed(kernel: Array, dilation: int, padding: Padding) -> tuple[Array, Padding]:
    """The kernel [kh,kw,O,I] and the padding of the stride-1 convolution that takes dy back to d loss / d x."""
    back = lambda size, sides: tuple(dilation * (size - 1) - side for side in sides)
    kh, kw = kernel.shape[:2]
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2), (back(kh, padding[0]), back(kw, padding[1]))


def _input_gradient(kernel, dy, dilation, padding):
    """d loss / d x of stride 1: the convolution with the flipped kernel."""
    flipped, back = transposed(kernel, dilation, padding)
    return lax_conv(dy, flipped, 1, dilation, back)


def _strided_input_gradient(x, kernel, dy, stride, dilation, padding):
    """d loss / d x: pixels of one phase (row and column modulo the stride) meet the taps of that phase alone, dy moved by whole pixels."""
    b, h, w, c = x.shape
    (top, bottom), (left, right) = padding
    rows, columns = _blocks(h + top + bottom, stride), _blocks(w + left + right, stride)
    down, across = (dilation * (k - 1) // stride for k in kernel.shape[:2])
    dy = jnp.pad(dy, ((0, 0), (down, rows - dy.shape[1]), (across, columns - dy.shape[2]), (0, 0)))

    def phase(p: int, q: int):
        total = jnp.zeros((b, rows, columns, c), dy.dtype)
        for i in (i for i in range(kernel.shape[0]) if i * dilation % stride == p):
            for j in (j for j in range(kernel.shape[1]) if j * dilation % stride == q):
                row, column = down - i * dilation // stride, across - j * dilation // stride
                total += dy[:, row : row + rows, column : column + columns] @ kernel[i, j].T
        return total

    phases = jnp.stack([jnp.stack([phase(p, q) for q in range(stride)], axis=3) for p in range(stride)], axis=2)
    return phases.reshape(b, rows * stride, columns * stride, c)[:, top : top + h, left : left + w]


def _kernel_gradient(x, kernel, dy, stride, dilation, padding):
    """d loss / d kernel: (shifted input)^T @ dy for each tap; as one product over all taps where the image is small."""
    kh, kw, ci, co = kernel.shape
    if stride == 1 and dy.shape[0] * dy.shape[1] * dy.shape[2] <= _ONE_PRODUCT:
        (h, w), padded = dy.shape[1:3], jnp.pad(x, ((0, 0), *padding, (0, 0)))
        shifted = [padded[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w] for i in range(kh) for j in range(kw)]
        columns = jnp.concatenate(shifted, axis=-1).reshape(-1, kh * kw * ci)
        return (dy.reshape(-1, co).T @ columns).T.reshape(kernel.shape).astype(kernel.dtype)
    taps = [
        [_tap_gradient(x, dy, i * dilation - padding[0][0], j * dilation - padding[1][0], stride) for j in range(kw)] for i in range(kh)
    ]
    return jnp.stack([jnp.stack(row) for row in taps]).astype(kernel.dtype)


def _tap_gradient(x, dy, row, column, stride):
    """Product of x moved by (row, column) with dy, over the outputs whose input lies inside the image."""
    (first_y, last_y), (first_x, last_x) = (
        _meeting(x.shape[1], dy.shape[1], row, stride),
        _meeting(x.shape[2], dy.shape[2], column, stride),
    )
    if last_y < first_y or last_x < first_x:
        return jnp.zeros((x.shape[-1], dy.shape[-1]), dy.dtype)
    part = dy[:, first_y : last_y + 1, first_x : last_x + 1]
    y0, x0 = first_y * stride + row, first_x * stride + column
    moved = x[:, y0 : y0 + (last_y - first_y) * stride + 1 : stride, x0 : x0 + (last_x - first_x) * stride + 1 : stride]
    return jnp.einsum("bhwi,bhwo->io", moved, part)


def _meeting(size: int, outputs: int, offset: int, stride: int) -> tuple[int, int]:
    """First and last output index o with 0 <= o * stride + offset < size."""
    return max(0, -(offset // stride)), min(outputs - 1, (size - 1 - offset) // stride)
