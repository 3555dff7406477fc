"""What DiGA shows its networks beside a source image: a photometric view, the image in the target's look, and the two mixed by class."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.translator import Translator
from segjax.ops import mixing, photometric_views
from segjax.ops.fourier import Variant, amplitude_transfer
from segjax.typing import Array, Frozen, Key

KINDS = ("crossdomix", "photometric", "translated")
TRANSLATORS = ("fda", "gan", "identity")
CHAINS = {
    "gta5": photometric_views.DIGA,
    "synthia": photometric_views.DIGA_SYNTHIA,
    "generalisation": photometric_views.DIGA_GENERALISATION,
}


@dataclasses.dataclass(frozen=True)
class SecondView:
    """The other view of a source image.

    kind: "crossdomix", half of the image's classes from the photometric view and the others translated (`ops.mixing.cross_domix_mask`);
    "photometric" or "translated", one of them alone.
    translator: "fda" gives the low-frequency amplitudes of a target image (beta, variant: `ops.fourier.amplitude_transfer`), "gan" is the
    frozen network `frozen["translator"]` (`nets.translator.Translator`), "identity" the image as it is.
    share, chain, faithful: `ops.photometric_views.diga_view`, its chain by name (CHAINS).
    """

    num_classes: int
    kind: str = "crossdomix"
    translator: str = "fda"
    beta: float = 0.01
    variant: Variant = "centred"
    share: float = 0.4
    chain: str = "gta5"
    faithful: bool = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        checks = {"second_view": (self.kind, KINDS), "translator": (self.translator, TRANSLATORS), "chain": (self.chain, tuple(CHAINS))}
        for name, (value, known) in checks.items():
            if value not in known:
                raise ConfigError(f"method.{name}={value!r}: expected {' or '.join(map(repr, known))}")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"method.view_share={self.share}: expected 0 (the image) to 1 (its photometric view)")

    @property
    def uses_target(self) -> bool:
        """Whether it looks at target images."""
        return self.kind != "photometric" and self.translator == "fda"

    def photometric(self, key: Key, image: Array) -> Array:
        """The photometric view of float images [B,H,W,3], of either domain."""
        return photometric_views.diga_view(key, image, share=self.share, faithful=self.faithful, **CHAINS[self.chain])

    def translate(self, image: Array, target: Array | None, frozen: Frozen) -> Array:
        """Float source images [B,H,W,3] in the look of the target. target: any number of images of that size; read by "fda" alone."""
        if self.translator == "identity":
            return image
        if self.translator == "gan":
            return translate(translator_variables(frozen), image, self.dtype)
        assert target is not None
        if target.shape[0] != image.shape[0]:  # not always: taking rows out of a sharded batch moves it between devices
            target = target[jnp.arange(image.shape[0]) % target.shape[0]]
        return amplitude_transfer(image, target, self.beta, variant=self.variant)

    def __call__(self, key: Key, image: Array, label: Array, target: Array | None, frozen: Frozen) -> Array:
        """The view of float source images [B,H,W,3] with labels [B,H,W]; see `translate` for target."""
        view_key, mask_key = jax.random.split(key)
        if self.kind == "photometric":
            return self.photometric(view_key, image)
        translated = self.translate(image, target, frozen)
        if self.kind == "translated":
            return translated
        mask = mixing.cross_domix_mask(mask_key, label, self.num_classes)
        return mixing.paste(mask, self.photometric(view_key, image), translated)


def translator_variables(frozen: Frozen) -> dict[str, Any]:
    """The translator among a step's frozen weights. ConfigError when the stage has none."""
    if not isinstance(frozen, dict) or "translator" not in frozen:
        raise ConfigError('method.translator="gan" needs the translator\'s weights: set the stage\'s frozen={"translator": FILE}')
    return frozen["translator"]


def translate(variables: dict[str, Any], image: Array, dtype: DTypeLike = jnp.float32) -> Array:
    """A trained `Translator` over RGB images in [0,1]; its size is that of its parameters."""
    encoder = variables["params"]["encoder"]
    width = encoder["stem"]["conv"]["kernel"].shape[-1]
    blocks = encoder["blocks"]["unit1"]["conv"]["kernel"].shape[0]
    return jnp.asarray(Translator(width, blocks, dtype).apply({"params": variables["params"]}, image))
