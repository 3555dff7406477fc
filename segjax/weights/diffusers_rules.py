"""Rules that diffusers' UNet and autoencoder share, for single and for scanned residual blocks."""

import dataclasses

from segjax.weights.engine import CONV, DENSE, IDENTITY, Rule, Transform


@dataclasses.dataclass(frozen=True)
class Place:
    """Where submodules of one kind stand. path: regular expression with `groups` groups. source: template of the same place there.

    run: which group is the first layer of a scanned run, whose source says {i}; None for a single layer.
    """

    path: str
    source: str
    groups: int
    run: int | None = None

    def rule(self, path: str, source: str, transform: Transform = IDENTITY) -> Rule:
        """The rule of parameters below this place; `source` counts the groups of `path` from `groups` on."""
        first = self.run
        number = None if first is None else lambda i, groups: int(groups[first]) + i
        return Rule(f"{self.path}/{path}", f"{self.source}.{source}", transform, number=number)

    def below(self, path: str, source: str, groups: int = 0) -> "Place":
        """A place within this one whose path has so many groups more."""
        return Place(f"{self.path}/{path}", f"{self.source}.{source}", self.groups + groups, self.run)


def convolution(place: Place) -> tuple[Rule, ...]:
    """Kernel and bias of a convolution at this place."""
    return place.rule("kernel", "weight", CONV), place.rule("bias", "bias")


def linear(place: Place, kernel: Transform = DENSE) -> tuple[Rule, ...]:
    """Kernel and bias of a linear layer at this place."""
    return place.rule("kernel", "weight", kernel), place.rule("bias", "bias")


def norm(place: Place) -> tuple[Rule, ...]:
    """Scale and bias of a normalisation at this place."""
    return place.rule("scale", "weight"), place.rule("bias", "bias")


def resnet(place: Place) -> tuple[Rule, ...]:
    """A residual block."""
    named = lambda names: place.below(f"({names})", f"{{{place.groups}}}", 1)
    convolutions = named("conv1|conv2|conv_shortcut")
    return (*convolution(convolutions), *norm(named("norm1|norm2")), *linear(named("time_emb_proj")))


def top(prefix: str = "", source: str = "", groups: int = 0) -> tuple[Rule, ...]:
    """The first and last layers of a network: conv_in, conv_norm_out, conv_out."""
    name = f"{{{groups}}}"
    ends = Place(f"params/{prefix}(conv_in|conv_out)", f"{source}{name}", groups + 1)
    return (*convolution(ends), *norm(Place(f"params/{prefix}(conv_norm_out)", f"{source}{name}", groups + 1)))
