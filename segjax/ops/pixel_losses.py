"""Losses of one pixel: maps out, one masked reduction at the call. Labels are ints, 255 (IGNORE) counts nowhere."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.resize import interpolation_matrix
from segjax.typing import Array

CHUNK_BYTES = {"cpu": 5 << 19, "default": 64 << 20}
"""Full-resolution logits held at a time: what stays in a CPU's cache, and enough work for an accelerator's every step."""


def masked_mean(value: Array, mask: Array) -> Array:
    """Mean of `value` over the pixels of `mask` (bool, or float weights), float32 scalar; 0 when nothing counts.

    Sum and count each run over the whole (sharded) batch before the division. Values outside the mask may be NaN.
    """
    weight = mask.astype(jnp.float32)
    total = jnp.sum(jnp.where(weight != 0, value, 0).astype(jnp.float32) * weight)
    count = jnp.sum(weight)
    return total / jnp.where(count > 0, count, 1)


def cross_entropy(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label] of each pixel in nats, float32 [B,H,W]; 0 at 255.

    logits float [B,H,W,K], label int [B,H,W]. An id outside 0..K-1 is ignored like 255: compiled code cannot raise (data checks do).
    """
    logits = logits.astype(jnp.float32)
    hit = label.astype(jnp.int32)[..., None] == jnp.arange(logits.shape[-1])
    # a masked sum, not a gather: the gather's gradient is a scatter
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return jnp.where(jnp.any(hit, axis=-1), loss, 0)


def entropy(logits: Array) -> Array:
    """Shannon entropy of each pixel's class distribution in nats, 0..ln K. [...,K] -> float32 [...]."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)


def robust_entropy(logits: Array, eta: float = 2.0, normalizer: float | None = None, epsilon: float = 1e-8) -> Array:
    """Charbonnier penalty of the entropy, ((e / normalizer)^2 + epsilon)^eta for each pixel. [...,K] -> float32 [...].

    normalizer None: ln K, so that the uniform distribution scores 1. The authors' code divides by 2.9444 (ln 19 rounded) whatever K
    is; the paper (FDA, CVPR 2020, eq. 4) has epsilon = 0.001^2 and no normalizer (1.0). Source: YanchaoYang/FDA model/deeplab.py.
    """
    share = entropy(logits) / (math.log(logits.shape[-1]) if normalizer is None else normalizer)
    return (share * share + epsilon) ** eta


def self_information(logits: Array) -> Array:
    """-p log2(p + 1e-30) / log2 K of each class and pixel, float32 [...,K]: what ADVENT's discriminator sees (func.py, prob_2_entropy)."""
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return -probs * jnp.log2(probs + 1e-30) / math.log2(logits.shape[-1])


def min_entropy(logits: Array) -> Array:
    """Normalized entropy of each pixel, 0..1: [...,K] -> float32 [...]. Its mean is ADVENT's MinEnt loss (loss.py, entropy_loss)."""
    return jnp.sum(self_information(logits), axis=-1)


def upsampled_cross_entropy(
    logits: Array,
    label: Array,
    *,
    align_corners: bool = False,
    class_weights: Array | tuple[float, ...] | None = None,
    chunks: int | Literal["auto"] = "auto",
) -> tuple[Array, Array]:
    """Cross-entropy at the label's size of bilinearly up-sampled logits: (weighted sum, sum of weights), float32 scalars.

    logits float [B,h,w,K] at the network's stride, label int [B,H,W] (255 and ids outside 0..K-1 count nowhere), class_weights
    float [K] or None. The mean is sum / weight_sum, as torch's CrossEntropyLoss(weight, ignore_index=255) of F.interpolate has it.
    Equal to `cross_entropy(bilinear(logits), label)` to float tolerance, but full-resolution logits never exist: blocks of rows are
    up-sampled, scored and differentiated one after the other, the gradient in the same pass as the value.
    chunks: number of row blocks; "auto" fits a block to the platform's cache. Differentiable in logits only (weights are constants).
    """
    if logits.ndim != 4 or label.ndim != 3 or logits.shape[0] != label.shape[0]:
        raise ConfigError(f"logits {logits.shape} and label {label.shape}: expected [B,h,w,K] and [B,H,W] with the same B")
    classes = logits.shape[-1]
    weights = jnp.ones(classes, jnp.float32) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (classes,):
        raise ConfigError(f"class_weights has shape {weights.shape}: expected one weight for each of the {classes} classes")
    if chunks != "auto" and not 1 <= chunks <= label.shape[1]:
        raise ConfigError(f"chunks={chunks}: expected 'auto' or 1..{label.shape[1]} (the label's height)")
    return _fused(logits, label, lax.stop_gradient(weights), align_corners, chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _fused(logits, label, weights, align_corners, chunks):
    return _by_platform(logits, label, weights, align_corners, chunks, gradient=False)[:2]


def _fused_forward(logits, label, weights, align_corners, chunks):
    total, count, gradient = _by_platform(logits, label, weights, align_corners, chunks, gradient=True)
    return (total, count), gradient.astype(logits.dtype)


def _fused_backward(align_corners, chunks, gradient, cotangent):
    return (gradient * cotangent[0]).astype(gradient.dtype), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _by_platform(logits, label, weights, align_corners, chunks, gradient):
    batch, height, width = label.shape
    row_bytes = 4 * batch * width * logits.shape[-1]

    def run(rows: int):
        return functools.partial(_scan_rows, align_corners=align_corners, rows=rows, gradient=gradient)

    if chunks != "auto":
        return run(-(-height // chunks))(logits, label, weights)
    # a power of two divides the usual heights and strides, so that no block is padded or straddles one more row of logits
    choices = {name: min(height, 1 << max(0, (size // row_bytes).bit_length() - 1)) for name, size in CHUNK_BYTES.items()}
    if len(set(choices.values())) == 1:
        return run(choices["cpu"])(logits, label, weights)
    return lax.platform_dependent(logits, label, weights, **{name: run(rows) for name, rows in choices.items()})


def _row_blocks(size_in: int, size_out: int, rows: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation matrix cut into blocks of `rows` outputs: first input row of each block [N], and weights [N,rows,touched]."""
    count = -(-size_out // rows)
    matrix = np.zeros((count * rows, size_in), np.float32)
    matrix[:size_out] = interpolation_matrix(size_in, size_out, align_corners)
    blocks = matrix.reshape(count, rows, size_in)
    used = np.any(blocks != 0, axis=1)
    first, last = used.argmax(axis=1), size_in - 1 - used[:, ::-1].argmax(axis=1)
    touched = int((last - first).max()) + 1
    first = np.minimum(first, size_in - touched)
    return first, np.stack([block[:, start : start + touched] for block, start in zip(blocks, first, strict=True)])


def _scan_rows(logits, label, weights, *, align_corners, rows, gradient):
    """(sum, weight sum, gradient of the sum or None). Inside, classes stand before columns: [B,rows,K,W] reduces over K at full width."""
    batch, height, width = label.shape
    _, h, w, classes = logits.shape
    first, row_weights = _row_blocks(h, height, rows, align_corners)
    columns = jnp.asarray(interpolation_matrix(w, width, align_corners))
    touched = row_weights.shape[2]
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    z = logits.astype(jnp.float32).swapaxes(2, 3)
    padded = jnp.pad(label, ((0, 0), (0, len(first) * rows - height), (0, 0)), constant_values=255)
    blocks = padded.reshape(batch, len(first), rows, width).swapaxes(0, 1)
    ids = jnp.arange(classes)[:, None]

    def body(carry, block):
        total, count, slope = carry
        start, mix, truth = block
        mix = jnp.broadcast_to(mix, (batch, *mix.shape))
        wide = product(lax.dynamic_slice_in_dim(z, start, touched, 1).reshape(-1, w), columns.T)
        full = product(mix, wide.reshape(batch, touched, classes * width)).reshape(batch, rows, classes, width)
        hit = truth.astype(jnp.int32)[:, :, None] == ids
        weight = jnp.sum(jnp.where(hit, weights[:, None], 0), axis=2)
        peak = jnp.max(full, axis=2, keepdims=True)
        power = jnp.exp(full - peak)
        mass = jnp.sum(power, axis=2, keepdims=True)
        loss = (jnp.log(mass) + peak)[:, :, 0] - jnp.sum(jnp.where(hit, full, 0), axis=2)
        total, count = total + jnp.sum(jnp.where(weight != 0, loss * weight, 0)), count + jnp.sum(weight)
        if gradient:
            back = (power / mass - hit) * weight[:, :, None]
            back = product(mix.swapaxes(1, 2), back.reshape(batch, rows, classes * width))
            back = product(back.reshape(-1, width), columns).reshape(batch, touched, classes, w)
            slope = lax.dynamic_update_slice_in_dim(slope, lax.dynamic_slice_in_dim(slope, start, touched, 1) + back, start, 1)
        return (total, count, slope), None

    zero = jnp.zeros((), jnp.float32)
    carry = (zero, zero, jnp.zeros_like(z) if gradient else zero)
    (total, count, slope), _ = lax.scan(body, carry, (jnp.asarray(first), jnp.asarray(row_weights), blocks))
    return total, count, slope.swapaxes(2, 3) if gradient else slope
