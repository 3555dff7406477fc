"""What trains DiGA's translator: both directions at once, and the patch discriminators that judge each (losses are the method's)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import Conv
from segjax.nets.translator import Decoder, Encoder, check_size, to_network
from segjax.typing import Array


class TranslatorCycle(nn.Module):
    """Two encoders and two decoders over RGB images [B,H,W,3] in [0,1] of two domains, of one size that is a multiple of 4.

    Returns float32 images [B,H,W,3] as `to_network` makes them: "source" and "target", the inputs; "source_to_target" and
    "target_to_source"; "source_again" and "target_again", decoded for their own domain; "source_cycle" and "target_cycle", there and back.
    """

    width: int = 64
    blocks: int = 4
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        sizes: dict[str, Any] = dict(width=self.width, blocks=self.blocks, dtype=self.dtype)
        self.encoder_source, self.encoder_target = Encoder(**sizes), Encoder(**sizes)
        self.decoder_source, self.decoder_target = Decoder(**sizes), Decoder(**sizes)

    def __call__(self, source: Array, target: Array) -> dict[str, Array]:
        check_size(source, whole=True)
        if source.shape[1:] != target.shape[1:]:
            raise ConfigError(f"translator: source images {source.shape[1:]}, target images {target.shape[1:]}: crop both to one size")
        source, target, n = to_network(source), to_network(target), source.shape[0]
        # each decoder sees both contents in one call: no norm looks across images
        contents = jnp.concatenate([self.encoder_source(source), self.encoder_target(target)])
        as_source, as_target = self.decoder_source(contents), self.decoder_target(contents)
        to_target, to_source = as_target[:n], as_source[n:]
        return {
            "source": source,
            "target": target,
            "source_to_target": to_target,
            "target_to_source": to_source,
            "source_again": as_source[:n],
            "target_again": as_target[n:],
            "source_cycle": self.decoder_source(self.encoder_target(to_target)),
            "target_cycle": self.decoder_target(self.encoder_source(to_source)),
        }

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of an image of each domain."""
        return (jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),) * 2


def source_to_target(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a `Translator` from the source's look to the target's, out of those of a `TranslatorCycle`."""
    return {"encoder": params["encoder_source"], "decoder": params["decoder_target"]}


class PatchDiscriminator(nn.Module):
    """How real each patch of a normalised image [B,H,W,3] looks: one float32 map [B,H//16,W//16,1] a scale, each scale half the last.

    Every scale has its own convolutions (4x4, stride 2, zero border, no norm, leaky ReLU of 0.2).
    """

    width: int = 64
    layers: int = 4
    scales: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        outputs = []
        for n in range(self.scales):
            if min(x.shape[1:3]) < 2**self.layers:
                at = f"{x.shape[1]}x{x.shape[2]} at scale {n} of {self.scales}"
                raise ConfigError(f"discriminator: an image of {at}: expected {2**self.layers} at least: set a larger data.crop")
            y = x.astype(self.dtype)
            for k in range(self.layers):
                conv = Conv(self.width * 2**k, (4, 4), 2, padding=1, use_bias=False, dtype=self.dtype, name=f"scale{n}_conv{k}")
                y = nn.leaky_relu(conv(y), 0.2)
            outputs.append(Conv(1, (1, 1), name=f"scale{n}_last")(y))
            x = halved(x)
        return outputs


def halved(x: Array) -> Array:
    """Means of 3x3 windows two pixels apart, over the pixels inside the image: [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),C].

    torch's `AvgPool2d(3, 2, 1, count_include_pad=False)`.
    """
    return _halved(_halved(x, 1), 2)


def _halved(x: Array, axis: int) -> Array:
    size = x.shape[axis]

    def sums(y: Array) -> Array:
        y = jnp.pad(y, [(1, 1) if n == axis else (0, 0) for n in range(y.ndim)])
        first, middle, last = (jax.lax.slice_in_dim(y, k, k + size, 2, axis) for k in range(3))
        return first + middle + last

    return sums(x) / sums(jnp.ones([size if n == axis else 1 for n in range(x.ndim)], x.dtype))
