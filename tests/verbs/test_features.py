"""`embed` of a tiny SAM: features on disk, in training batches and in `refine`, gone on with after a stop, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data import features, folders, pipeline
from segjax.errors import DataError
from segjax.nets.initial import shapes
from segjax.nets.label_refiner import encode
from segjax.nets.sam import Sam
from segjax.weights import safetensors_io

TINY: dict = dict(image_size=128, embed_dim=8, depth=1, num_heads=1, mlp_dim=8, global_blocks=(0,), features=16)
TINY |= dict(decoder_depth=1, decoder_heads=2, mask_channels=4)
SAM = Sam(**TINY)


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(1)
    draw = lambda path, leaf: rng.normal(float("scale" in str(path[-1])), 0.3, leaf.shape).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes(SAM))


@pytest.fixture(scope="module")
def model(variables, tmp_path_factory):
    """The network's file, as `convert` writes one."""
    path = tmp_path_factory.mktemp("sam") / "sam.safetensors"
    safetensors_io.write(path, safetensors_io.flatten(variables), {"model": json.dumps({"make": "segjax.nets.sam:Sam", **TINY})})
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two pictures of blocks, 96x64, and their labels."""
    place, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    for name in "ab":
        blocks = rng.integers(0, 19, (2, 3))
        image = np.kron(rng.integers(0, 255, (2, 3, 3)), np.ones((32, 32, 1))) * 0.8 + rng.integers(0, 50, (64, 96, 3))
        for kind, pixels in (("images", image), ("labels", np.kron(blocks, np.ones((32, 32))))):
            (place / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / kind / f"{name}.png")
    return place


def embed(model, photographs, out, *flags):
    return cli.main(["embed", f"--model={model}", f"--images={photographs / 'images'}", f"--output={out}", *flags])


@pytest.fixture(scope="module")
def kept(model, photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "out"
    assert embed(model, photographs, out, "--flips", "--batch-size=2") == 0
    return out


def test_batches_hold_the_features_of_their_images(model, variables, photographs, kept):
    images = folders.FolderDataset(photographs / "images", labels=photographs / "labels")
    target = features.WithFeatures(images, kept, weights=str(model))
    told = dict(seed=0, batch_size=4, steps=2, crop=(64, 96))
    found = list(pipeline.training_batches(images, target, **told))
    plain = list(pipeline.training_batches(images, images, **told))
    run = jax.jit(lambda image: encode(SAM, variables, image))
    mirrored = 0
    for batch, same in zip(found, plain, strict=True):
        np.testing.assert_array_equal(batch["target_image"], same["target_image"])  # features change nothing else
        got, want = batch["target_sam_features"], np.asarray(run(jnp.asarray(batch["target_image"])))
        assert got.dtype == np.float16 and got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
        mirrored += sum(
            (image[:, ::-1] == images[0]["image"]).all() or (image[:, ::-1] == images[1]["image"]).all() for image in batch["target_image"]
        )
    assert 0 < mirrored < 8
    with pytest.raises(DataError, match="features are of the whole image and the crop 64x32 is another part"):
        list(pipeline.training_batches(images, target, **{**told, "crop": (32, 64)}))


def test_refine_reads_them(model, variables, photographs, kept, tmp_path, capsys):
    told = [f"--images={photographs / 'images'}", f"--labels={photographs / 'labels'}", "--min-area=300", "--places=6"]
    for name, more in (("with", [f"--features={kept}"]), ("without", [])):
        assert cli.main(["refine", f"--model={model}", *told, f"--output={tmp_path / name}", *more]) == 0
    read = lambda name: np.stack([np.asarray(Image.open(tmp_path / name / "labels" / f"{image}.png")) for image in "ab"])
    one, other = read("with"), read("without")
    assert (one != read_labels(photographs)).any() and (one != other).mean() < 0.01  # float16 moves edges: some pixels
    capsys.readouterr()
    another = tmp_path / "other.safetensors"
    safetensors_io.write(another, safetensors_io.flatten(variables), {**safetensors_io.read(model)[1], "layout": "another"})
    assert cli.main(["refine", f"--model={another}", *told, f"--output={tmp_path / 'no'}", f"--features={kept}"]) == 3
    assert "its features are of other weights (sam.safetensors" in capsys.readouterr().err
    with pytest.raises(DataError, match="of other weights"):
        features.WithFeatures(folders.FolderDataset(photographs / "images"), kept, weights=str(another))


def read_labels(photographs):
    return np.stack([np.asarray(Image.open(photographs / "labels" / f"{image}.png")) for image in "ab"])


def test_goes_on_and_refuses(model, photographs, kept, capsys):
    assert embed(model, photographs, kept, "--flips") == 0 and "nothing to do" in capsys.readouterr().out
    before = (kept / "features" / "b.npy").read_bytes()
    summary = json.loads((kept / features.SUMMARY).read_text())
    (kept / features.SUMMARY).unlink()
    with pytest.raises(DataError, match="has no features.json, so its features are not whole"):
        features.read_summary(kept)
    (kept / "features" / "b.npy").unlink()
    untouched = (kept / "features" / "a.npy").stat().st_mtime_ns
    assert embed(model, photographs, kept, "--flips", "--batch-size=2") == 0
    assert (kept / "features" / "a.npy").stat().st_mtime_ns == untouched
    again = np.load(kept / "features" / "b.npy")
    assert again.shape[0] == 2 and len(before) == (kept / "features" / "b.npy").stat().st_size
    assert json.loads((kept / features.SUMMARY).read_text()) == summary
    assert embed(model, photographs, kept) == 2 and "made with other settings (flips: True -> False)" in capsys.readouterr().err
    (kept / "features" / "b.npy").unlink()
    with pytest.raises(DataError, match="1 of 2 images .* have none"):
        features.WithFeatures(folders.FolderDataset(photographs / "images"), kept)
