"""UNet and autoencoder of Stable Diffusion against diffusers: stored outputs and middle features, both directories, tables both ways."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden

from segjax.errors import WeightsError
from segjax.nets.unet import DownBlock, UNet
from segjax.nets.vae import VAE
from segjax.verbs import networks, variables
from segjax.weights import safetensors_io, walk
from segjax.weights.diffusers_unet import CONVOLUTIONS, LINEAR, UNET_DIFFUSERS
from segjax.weights.diffusers_vae import PROJECTIONS, QUERY_KEY_VALUE, VAE_DIFFUSERS

FOLDERS = ("stable_diffusion", "stable_diffusion_resaved")


class Part(Golden):
    """One network of a diffusers directory; the expected arrays lie beside model_index.json."""

    def _arrays_in(self):
        return self.path.parent


@pytest.fixture(scope="module", params=FOLDERS)
def unet(request, goldens):
    return Part(goldens / request.param / "unet")


@pytest.fixture(scope="module", params=FOLDERS)
def vae(request, goldens):
    return Part(goldens / request.param / "vae")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(net, look, variables, *arguments):
    """Outputs, and the outputs of the submodules named in `look`: one program for both directories."""
    middle = {}

    def keep(call, args, kwargs, context):
        result = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and name in look:
            middle[name] = result
        return result

    with nn.intercept_methods(keep):
        return net.apply(variables, *arguments), middle


@functools.partial(jax.jit, static_argnums=0)
def _both_ways(net, variables, image, latents):
    return net.apply(variables, image, method="encode"), net.apply(variables, latents, method="decode")


def test_unet_with_middle_features(unet):
    net = unet.net()
    weights = unet.variables(net)
    arguments = [unet.arrays[name] for name in ("in_latents", "in_timesteps", "in_context")]
    look = (
        "time_embedding",
        "conv_in",
        "down_blocks_0/layer_0/attentions",
        "down_blocks_0/layers_0",
        "down_blocks_1",
        "mid_block",
        "up_blocks_1",
    )
    output, middle = _run(net, look, weights, *arguments)
    unet.check("out_unet", output)
    if "mid_unet_mid_block" in unet.arrays:
        unet.check("mid_unet_time_embedding", middle["time_embedding"])
        unet.check("mid_unet_conv_in", middle["conv_in"])
        unet.check("mid_unet_down_blocks_0_attentions_0", middle["down_blocks_0/layer_0/attentions"])
        unet.check("mid_unet_down_blocks_1", middle["down_blocks_1"][0])
        unet.check("mid_unet_mid_block", middle["mid_block"])
        unet.check("mid_unet_up_blocks_1", middle["up_blocks_1"])


def test_in_bfloat16_with_text_keys_and_values_made_once_and_a_scalar_timestep(goldens):
    unet, vae = (Part(goldens / FOLDERS[0] / name) for name in ("unet", "vae"))
    half, latents, context = unet.net(dtype="bfloat16"), unet.arrays["in_latents"], unet.arrays["in_context"]
    run = jax.jit(lambda v: half.apply(v, latents, 500, memory=half.apply(v, context, method="keys_values")))
    output = run(unet.variables(unet.net()))
    assert output.dtype == jnp.float32
    unet.check_half("out_unet_scalar_t", output)  # in float32 every step of tests/generation/test_diffusion.py is such a call
    net = vae.net(dtype="bfloat16")
    image = jax.jit(lambda v, x: net.apply(v, x, method="decode"))(vae.variables(vae.net()), vae.arrays["in_vae_latents"])
    vae.check_half("out_vae_decode", 2 * np.asarray(image) - 1)


def test_autoencoder(vae):
    net = vae.net()
    weights = vae.variables(net)
    (mean, log_variance), image = _both_ways(net, weights, (vae.arrays["in_image"] + 1) / 2, vae.arrays["in_vae_latents"])
    vae.check("out_vae_mean", mean)
    vae.check("out_vae_logvar", log_variance)
    vae.check("out_vae_decode", 2 * np.asarray(image) - 1)


def test_there_and_back_is_bit_equal(unet, vae):
    unet.check_the_way_back()
    vae.check_the_way_back()


def test_forms(goldens):
    published, resaved = (Part(goldens / name / "vae") for name in FOLDERS)
    assert VAE_DIFFUSERS.layout(published.source) is QUERY_KEY_VALUE and VAE_DIFFUSERS.layout(resaved.source) is PROJECTIONS
    unet = Part(goldens / FOLDERS[0] / "unet")
    assert UNET_DIFFUSERS.layout(unet.source) is CONVOLUTIONS
    flat = unet.convert(unet.net())
    linear = walk.to_source(flat, LINEAR)
    assert linear.keys() == unet.source.keys() and UNET_DIFFUSERS.layout(linear) is LINEAR
    again = walk.to_segjax(linear, LINEAR, unet.shapes(unet.net()))
    assert all(np.array_equal(again[path], flat[path]) for path in flat)


def test_convert_keeps_form_and_types(goldens, tmp_path):
    """A float16 UNet with linear projections through a segjax file and back."""
    unet = Part(goldens / FOLDERS[0] / "unet")
    linear = {key: value.astype(np.float16) for key, value in walk.to_source(unet.convert(unet.net()), LINEAR).items()}
    (tmp_path / "unet").mkdir()
    safetensors_io.write(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", linear)
    (tmp_path / "unet" / "config.json").write_text((unet.path / "config.json").read_text())
    network = networks.load(tmp_path / "unet")
    safetensors_io.write(tmp_path / "unet.safetensors", safetensors_io.flatten(network.variables), network.metadata)
    again = networks.load(tmp_path / "unet.safetensors")
    assert hash(again.module) == hash(network.module) and again.module == network.module
    back = networks.to_public(safetensors_io.flatten(again.variables), again.metadata, UNET_DIFFUSERS, "unet")
    assert back.keys() == linear.keys()
    assert all(back[key].dtype == np.float16 and np.array_equal(back[key], linear[key]) for key in linear)


def test_remat_gives_the_same_gradient():
    blocks = [DownBlock(8, 2, resample=False, groups=4, remat=remat) for remat in ("none", "all")]
    arguments = np.ones((1, 4, 4, 8), np.float32) * np.arange(8, dtype=np.float32), np.ones((1, 8), np.float32), None, None
    draw, like = np.random.default_rng(0).normal, jax.eval_shape(lambda key: blocks[0].init(key, *arguments), jax.random.key(0))
    weights = jax.tree.map(lambda x: draw(0, 0.3, x.shape).astype(np.float32), like)
    loss = lambda block, weights: jnp.mean(block.apply(weights, *arguments)[0] ** 2)
    kept, again = jax.jit(lambda weights: [jax.tree.leaves(jax.grad(functools.partial(loss, block))(weights)) for block in blocks])(weights)
    for a, b in zip(kept, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(a).max()) + 1e-7)
    assert max(float(np.abs(leaf).max()) for leaf in kept) > 1e-3


def test_no_convolution_is_left_on_a_cpu():
    """One of XLA's there follows, in its last bit, the number of threads; elsewhere it stays one."""
    sizes = dict(widths=(8, 8), heads=(2, 2), layers=(1, 1), transformers=(1, 1), down_attention=(False,) * 2, up_attention=(False,) * 2)
    for net in (UNet(**sizes, context_features=8, groups=4), VAE(widths=(8, 8), layers=1, groups=2)):
        like = jax.eval_shape(net.init, jax.random.key(0), *net.example())
        traced = jax.jit(net.apply).trace(like, *net.example())
        on_cpu, on_tpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu"))
        assert "stablehlo.convolution" not in on_cpu and on_tpu.count("stablehlo.convolution") > 4  # one of each shape


def test_the_full_size_of_the_autoencoder():
    """The UNet's: tests/generation/test_directory.py."""
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables.shapes(VAE())["params"])) == 83_653_863


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep', expected None"),
        ({"attention_head_dim": [4, 4]}, r"attention_head_dim=\[4, 4\], expected a positive number, or 3 of them"),
        ({"attention_head_dim": 5}, "5 heads"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "down_block_types with 'AttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"] * 2}, "3 down and 2 up blocks for 3 widths"),
    ],
)
def test_a_unet_of_another_kind_is_refused(goldens, change, words):
    folder = goldens / FOLDERS[0] / "unet"
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match=words):
        UNET_DIFFUSERS.model({}, {**config, **change})
    with pytest.raises(WeightsError, match="needs the config.json"):
        UNET_DIFFUSERS.model({}, {})


def test_a_config_that_belongs_elsewhere_is_refused(goldens):
    """A UNet's: tests/generation/test_directory.py."""
    published = Part(goldens / FOLDERS[0] / "vae")
    with pytest.raises(WeightsError, match=r"block_out_channels=\[8, 16\], the weights have \(8, 16, 16\)"):
        VAE_DIFFUSERS.model(published.source, {**published.config, "block_out_channels": [8, 16]})
