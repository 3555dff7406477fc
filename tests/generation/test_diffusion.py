"""Text to images against diffusers' pipeline, and the promise that an image depends on prompt, seed and index alone."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_diffusion

from segjax.generation import diffusion, directory, schedulers
from segjax.runtime.mesh import make_mesh

PUBLISHED, RESAVED = "stable_diffusion", "stable_diffusion_resaved"


read = functools.cache(directory.read)


@pytest.fixture(scope="module")
def model(goldens):
    return read(goldens / PUBLISHED)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, goldens):
    return directory.read(tiny_diffusion.write(tmp_path_factory.mktemp("tiny"), goldens))


class Expected:
    """golden.npz of a directory, images NHWC, and a check within each array's own tolerance."""

    def __init__(self, folder):
        self.arrays = dict(np.load(folder / "golden.npz"))
        self.facts = json.loads((folder / "arrays.json").read_text())

    def __getitem__(self, name):
        array = self.arrays[name]
        return np.moveaxis(array, -3, -1) if array.ndim >= 4 else array

    def check(self, name, got):
        np.testing.assert_allclose(np.asarray(got), self[name], rtol=0, atol=self.facts[name]["atol"], err_msg=name)


@pytest.mark.parametrize(("folder", "name"), [(PUBLISHED, "pndm"), (RESAVED, "ddim")])
def test_the_whole_of_text_to_image(goldens, folder, name):
    """Prompt 0 of the stored ids, the empty prompt as the negative one, guidance 7.5, 6 steps, from the stored noise."""
    model, expected = read(goldens / folder), Expected(goldens / folder)
    prompts = json.loads((goldens / folder / "prompts.json").read_text())
    sampler = schedulers.make(model.scheduler, 6, name)
    ids, negative = expected["in_ids"][:1], expected["in_ids"][prompts.index("")]

    @jax.jit
    def run(variables, start):
        return diffusion.sample(model.networks, variables, sampler, ids, negative, start, lambda i: start, guidance=7.5, trajectory=True)

    path = run(model.variables, expected["in_init_latents"])
    expected.check(f"out_txt2img_{name}_latents", path[-1])
    if folder == PUBLISHED:
        expected.check(f"mid_txt2img_{name}_trajectory", path)
        np.testing.assert_array_equal(sampler.timesteps, expected[f"out_txt2img_{name}_timesteps"])


def test_images_of_latents(model, goldens):
    expected = Expected(goldens / PUBLISHED)
    image = jax.jit(lambda *a: diffusion.decode(model.networks, *a))(model.variables, expected["out_txt2img_ddim_latents"])
    expected.check("out_txt2img_ddim_image01", image)
    np.testing.assert_array_equal(diffusion.to_uint8(image), np.round(np.asarray(image) * 255).astype(np.uint8))


@functools.partial(jax.jit, static_argnums=0)
def encode(module, variables, ids):
    return module.apply(variables, ids, hidden=True)


@pytest.mark.parametrize("folder", [PUBLISHED, RESAVED])
def test_text_encoder(goldens, folder):
    model, expected = read(goldens / folder), Expected(goldens / folder)
    texts = encode(model.text.module, model.text.variables, expected["in_ids"])
    expected.check("out_text_last", texts["last"])
    if "out_text_penultimate" in expected.arrays:
        expected.check("out_text_penultimate", texts["hidden"][-2])


def test_an_image_is_the_same_in_every_batch_and_on_every_mesh(tiny, goldens):
    """Image 5, alone and with 1 to 9 others, first and last, on 1 and on 8 devices: the same bytes; its seed and its index change it."""
    ids = Expected(goldens / PUBLISHED)["in_ids"].astype(np.int32)
    sampler = schedulers.make(tiny.scheduler, 2, "ddpm")
    made = {}

    def make(devices, capacity, indices, seed=3):
        mesh = make_mesh(devices)
        generate = made.setdefault((devices, capacity), diffusion.generator(tiny.networks, sampler, mesh, size=(8, 8), guidance=7.5))
        rows = np.zeros((devices * capacity, 1), np.int32)
        units = np.zeros(devices, np.int32)
        for n, index in enumerate(indices):
            rows[n % devices * capacity + n // devices] = index
            units[n % devices] += 1
        images = np.asarray(generate(tiny.variables, ids[rows % 4], ids[4], jax.random.key(seed), rows, units))
        return {index: images[n % devices * capacity + n // devices, 0] for n, index in enumerate(indices)}, images

    alone, _ = make(1, 4, [5])
    assert alone[5].shape == (8, 8, 3) and alone[5].std() > 5
    for devices, capacity, indices in [(1, 4, [5, 2]), (1, 4, [0, 1, 2, 5]), (8, 2, [*range(8), 9, 5])]:
        several, images = make(devices, capacity, indices)
        assert several[5].tobytes() == alone[5].tobytes(), (devices, capacity, indices)
        assert len({image.tobytes() for image in several.values()}) == len(several)
        assert (images.reshape(len(images), -1).max(1) == 0).sum() == devices * capacity - len(indices)
    assert make(1, 4, [5], seed=4)[0][5].tobytes() != alone[5].tobytes()
    assert make(1, 4, [6])[0][6].tobytes() != alone[5].tobytes()


def test_guidance_of_one_leaves_the_negative_text_out(tiny, goldens):
    ids = Expected(goldens / PUBLISHED)["in_ids"]
    sampler = schedulers.make(tiny.scheduler, 1, "ddim")
    start = np.ones((1, 4, 4, 4), np.float32)

    def run(variables, negative):
        return diffusion.sample(tiny.networks, variables, sampler, ids[:1], negative, start, lambda i: start, guidance=1.0)

    run = jax.jit(run)
    np.testing.assert_array_equal(run(tiny.variables, ids[1]), run(tiny.variables, ids[4]))


def test_kernels_in_the_compute_type(model):
    half = diffusion.with_kernels_in(model.variables, jnp.bfloat16)
    kinds = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(half)}
    assert kinds["kernel"] == jnp.bfloat16 and kinds["scale"] == kinds["token_embedding"] == np.float32
