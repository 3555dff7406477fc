"""The keys of open_clip's public models and the shapes that they have, written out from the architectures' sizes alone."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _transformer(prefix: str, layers: int, width: int) -> Shapes:
    found: Shapes = {}
    for n in range(layers):
        at = f"{prefix}transformer.resblocks.{n}"
        found |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        found |= linear(f"{at}.attn.out_proj", width, width) | affine(f"{at}.ln_1", width) | affine(f"{at}.ln_2", width)
        found |= linear(f"{at}.mlp.c_fc", 4 * width, width) | linear(f"{at}.mlp.c_proj", width, 4 * width)
    return found


def _text(layers: int, width: int, embed_dim: int) -> Shapes:
    top = {"positional_embedding": (77, width), "text_projection": (width, embed_dim), "logit_scale": ()}
    return top | {"token_embedding.weight": (49408, width)} | _transformer("", layers, width) | affine("ln_final", width)


def _vit(patch: int, size: int, layers: int, width: int, embed_dim: int) -> Shapes:
    found: Shapes = {"visual.conv1.weight": (width, 3, patch, patch), "visual.class_embedding": (width,), "visual.proj": (width, embed_dim)}
    found |= {"visual.positional_embedding": ((size // patch) ** 2 + 1, width)} | _transformer("visual.", layers, width)
    return found | affine("visual.ln_pre", width) | affine("visual.ln_post", width)


def batch_norm(name: str, width: int) -> Shapes:
    return affine(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def _resnet(layers: tuple[int, ...], width: int, embed_dim: int) -> Shapes:
    found: Shapes = {}
    for n, (into, out) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
        found |= {f"visual.conv{n}.weight": (out, into, 3, 3)} | batch_norm(f"visual.bn{n}", out)
    into = width
    for stage, blocks in enumerate(layers, 1):
        middle = width * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"visual.layer{stage}.{block}"
            for n, (i, o, k) in enumerate([(into, middle, 1), (middle, middle, 3), (middle, 4 * middle, 1)], 1):
                found |= {f"{at}.conv{n}.weight": (o, i, k, k)} | batch_norm(f"{at}.bn{n}", o)
            if block == 0:
                found |= {f"{at}.downsample.0.weight": (4 * middle, into, 1, 1)} | batch_norm(f"{at}.downsample.1", 4 * middle)
            into = 4 * middle
    for part in "qkv":
        found |= linear(f"visual.attnpool.{part}_proj", into, into)
    return found | linear("visual.attnpool.c_proj", embed_dim, into) | {"visual.attnpool.positional_embedding": (50, into)}


def _convnext(depths: tuple[int, ...], dims: tuple[int, ...], embed_dim: int, head: str = "mlp") -> Shapes:
    found: Shapes = {"visual.trunk.stem.0.weight": (dims[0], 3, 4, 4), "visual.trunk.stem.0.bias": (dims[0],)}
    found |= affine("visual.trunk.stem.1", dims[0])
    for n, (depth, width) in enumerate(zip(depths, dims, strict=True)):
        at = f"visual.trunk.stages.{n}"
        if n:
            found |= affine(f"{at}.downsample.0", dims[n - 1]) | {f"{at}.downsample.1.bias": (width,)}
            found |= {f"{at}.downsample.1.weight": (width, dims[n - 1], 2, 2)}
        for block in range(depth):
            here = f"{at}.blocks.{block}"
            found |= {f"{here}.conv_dw.weight": (width, 1, 7, 7), f"{here}.conv_dw.bias": (width,), f"{here}.gamma": (width,)}
            found |= affine(f"{here}.norm", width) | linear(f"{here}.mlp.fc1", 4 * width, width)
            found |= linear(f"{here}.mlp.fc2", width, 4 * width)
    found |= affine("visual.trunk.head.norm", dims[-1])
    if head == "linear":
        return found | linear("visual.head.proj", embed_dim, dims[-1], bias=False)
    found |= linear("visual.head.mlp.fc1", dims[-1], dims[-1])
    return found | linear("visual.head.mlp.fc2", embed_dim, dims[-1], bias=False)


FULL = {
    "ViT-B-16": _vit(16, 224, 12, 768, 512) | _text(12, 512, 512),
    "ViT-L-14-336": _vit(14, 336, 24, 1024, 768) | _text(12, 768, 768),
    "RN50": _resnet((3, 4, 6, 3), 64, 1024) | _text(12, 512, 1024),
    "RN101": _resnet((3, 4, 23, 3), 64, 512) | _text(12, 512, 512),
    "convnext_large_d_320": _convnext((3, 3, 27, 3), (192, 384, 768, 1536), 768) | _text(16, 768, 768),
    "convnext_base_w": _convnext((3, 3, 27, 3), (128, 256, 512, 1024), 640, "linear") | _text(12, 640, 640),
}
"""Name -> key -> shape: vision tower under `visual.`, and the text tower."""
