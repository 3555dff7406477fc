"""Class centroids as a stage: against numpy over single images, stopped and gone on, padded images, mistakes."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from segjax.data import label_spaces, pseudo
from segjax.data.procedural import StreetScenes
from segjax.data.transforms import resize_image
from segjax.errors import ConfigError, Preempted
from segjax.nets.layers import BatchNorm, Conv
from segjax.ops import prototypes, resize
from segjax.runtime import mesh as meshes
from segjax.runtime.preemption import Preemption
from segjax.verbs import build, centroids, centroids_work, folder, frozen, inference, pseudo_label, stages, variables
from segjax.verbs import pseudo_label_voters as voters
from segjax.verbs.pseudo_label_network import Labeller
from segjax.weights import safetensors_io

SCENES = {"make": "segjax.data.procedural:StreetScenes", "size": (32, 64), "look": "dusk", "length": 5}


class Pixelwise(nn.Module):
    """Features of each pixel by itself, so that no border changes them."""

    num_classes: int = 19
    align_corners: bool = True

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(BatchNorm(name="norm")(Conv(6, (1, 1), kernel_init=nn.initializers.normal(3.0), name="conv")(image), train))
        return {"logits": Conv(self.num_classes, (1, 1), kernel_init=nn.initializers.normal(3.0), name="last")(x), "features": x}


def config(**changes):
    trained = {"method": {"make": "segjax.methods.source_only:make"}, "optimizer": {"lr": 0.1}, "steps": 1, "batch_size": 1}
    trained |= {"model": {"make": f"{__name__}:Pixelwise"}, "evaluate": {}, "data": {"source": SCENES, "crop": (32, 64)}}
    stage = {"verb": "centroids", "networks": ("one",), "dataset": SCENES, "passes": 2, "batch_size": 2, "mesh": {"data": 1}, **changes}
    return ConfigDict({"name": "test", "order": ("one", "between"), "stages": {"one": trained, "between": stage}}, allow_dotted_keys=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a trained stage: a drawn network's weights."""
    place = tmp_path_factory.mktemp("one")
    drawn = jax.jit(Pixelwise().init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)))
    variables.export(place / folder.WEIGHTS, drawn, space="cityscapes19", metadata={})
    folder.write_json(place / folder.DONE, {"digest": "x", "steps": 1, "weights_sha256": "y"})
    return place, drawn


def test_running_mean_of_the_images_means(one, tmp_path):
    place, drawn = one
    apply = jax.jit(Pixelwise().apply)
    done = centroids.run_stage(config(cap=3), "between", tmp_path, {"one": place}, "refuse")
    data, mu, number, images = StreetScenes(size=(32, 64), look="dusk", length=5), np.zeros((19, 6)), np.zeros(19), np.zeros(19)
    for turn in range(2):
        for index in range(5):
            outputs = apply(drawn, data.image(index)[None] / 255.0)
            label, feature = np.asarray(outputs["logits"][0]).argmax(-1), np.asarray(outputs["features"][0], np.float64)
            for k in range(19):
                if (label == k).sum() >= 5:
                    mu[k] = (mu[k] * number[k] + feature[label == k].mean(0)) / (number[k] + 1)
                    number[k], images[k] = min(number[k] + 1, 3), images[k] + (turn == 0)
    assert 2 <= (number > 0).sum() < 19 and (number == 3).any()
    found = frozen.load({"centroids": tmp_path / centroids_work.FILE})["centroids"]
    np.testing.assert_allclose(found["centroids"], mu, atol=1e-5)
    np.testing.assert_array_equal(found["counts"], number)
    summary = json.loads((tmp_path / "centroids.json").read_text())
    assert list(summary["images_of_class"].values()) == images.tolist() and summary["dims"] == 6
    assert done["classes"] == (number > 0).sum() and not (tmp_path / folder.PARTIAL).exists()
    assert folder.stage_inputs(["between"], {"between": tmp_path}) == {"between": {"centroids_sha256": done["centroids_sha256"]}}


def test_stopped_it_goes_on_and_ends_with_the_same_bytes(one, tmp_path, monkeypatch, capsys):
    place, _ = one
    run = lambda where, **changes: centroids.run_stage(config(**changes), "between", tmp_path / where, {"one": place}, "refuse")
    whole = run("whole")
    with monkeypatch.context() as patched, pytest.raises(Preempted, match="2 of 5 images"):
        patched.setattr(Preemption, "requested", lambda self, number: "SIGTERM" if number == 1 else None)
        run("stopped")
    assert not (tmp_path / "stopped" / folder.DONE).exists()
    batches = []
    monkeypatch.setattr(centroids_work, "_means", lambda *a, means=centroids_work._means, **k: batches.append(a) or means(*a, **k))
    again = run("stopped")
    assert len(batches) == 1  # traced once, for the images that were missing
    files = [(tmp_path / name / centroids_work.FILE).read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1] and again["centroids_sha256"] == whole["centroids_sha256"]
    capsys.readouterr()
    run("whole")
    assert "nothing to do" in capsys.readouterr().out and len(batches) == 1
    with pytest.raises(ConfigError, match="made with other settings.*cap"):
        run("whole", cap=7)


def test_what_lies_beyond_an_image_counts_nowhere(one):
    image = StreetScenes(size=(32, 64), look="day", length=1).image(0)[None]
    padded = np.pad(image, ((0, 0), (0, 8), (0, 16), (0, 0)), "edge")
    means = lambda image, size: centroids_work._means(Pixelwise(), one[1], image, np.array([size]), fitted=False, least=5)
    for a, b in zip(means(image, (32, 64)), means(padded, (32, 64)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(means(padded, (40, 80))[0] - means(image, (32, 64))[0]).max() > 1e-4


def test_it_is_a_stage_like_others(one, tmp_path):
    assert stages.module(config(), "between") is centroids
    assert stages.needs(build.plain(config().stages.between)) == {"one": "networks"}
    centroids.check_stage(config(), "between")
    metadata = {"content": "class centroids", "label_space": "cityscapes19", "network": "one"}
    centroids.run_stage(config(size=(8, 16)), "between", tmp_path, {"one": one[0]}, "refuse")
    assert safetensors_io.metadata(tmp_path / centroids_work.FILE) == metadata


@pytest.mark.parametrize("size", [None, (24, 40)])
def test_labels_that_the_nearest_centroid_confirms(one, tmp_path, size):
    """`segjax pseudo-label` under the rule "consensus", and how right its labels are."""
    place, drawn = one
    centroids.run_stage(config(), "between", tmp_path / "between", {"one": place}, "refuse")
    labels = {"verb": "pseudo-label", "networks": ("one",), "dataset": SCENES, "batch_size": 2, "mesh": {"data": 1}, "size": size}
    labels |= {"rule": "consensus", "centroids": "{stage:between}/centroids.safetensors"}
    both = config()
    both.stages.labels = ConfigDict(labels)
    places = {"one": place, "between": tmp_path / "between"}
    done = pseudo_label.run_stage(both, "labels", tmp_path / "labels", places, "refuse")
    stored = frozen.load({"": tmp_path / "between" / centroids_work.FILE})[""]
    data, found = StreetScenes(size=(32, 64), look="dusk", length=5), pseudo.read_summary(tmp_path / "labels")

    @jax.jit
    def answered(image):
        outputs = Pixelwise().apply(drawn, image / 255.0)
        weights = prototypes.centroid_weights(outputs["features"], stored["centroids"], stored["counts"] > 0)
        closest, answer = jnp.argmax(weights, -1).astype(jnp.uint8), jax.nn.softmax(outputs["logits"])
        if size is not None:
            closest, answer = resize.nearest(closest, (32, 64)), resize.bilinear(answer, (32, 64), align_corners=True)
        return closest[0], jnp.argmax(answer, -1)[0]

    kept = right = 0
    for index, name in enumerate(pseudo.file_names(data)):
        label = np.asarray(Image.open(tmp_path / "labels/labels" / name))
        image = data.image(index)[None] if size is None else resize_image(data.image(index), size)[None]
        closest, answer = map(np.asarray, answered(image))
        expected = np.where(closest == answer, answer, 255)
        assert np.mean(label != expected) < 2e-3
        kept, right = kept + np.sum(label != 255), right + np.sum(label == data.label(index))
    assert 0.05 < kept / (5 * 32 * 64) < 0.95 and found["kept_pixels"] == kept / (5 * 32 * 64) and found["thresholds"] == [0.0] * 19
    assert set(done["scores"]) == {"pseudo-labels", "pseudo-labels-all"} and "share" not in found
    known = [(p, k) for p, k in zip(found["predicted"], found["kept"], strict=True) if k is not None]
    assert sum(p * k for p, k in known) == pytest.approx(found["kept_pixels"])
    assert folder.read_json(tmp_path / "labels" / folder.CONFIG)["inputs"]["stages"]["between"]["centroids_sha256"]


def test_consensus_without_its_centroids_is_refused(one, tmp_path):
    both = config()
    both.stages.labels = ConfigDict({"verb": "pseudo-label", "networks": ("one",), "dataset": SCENES, "rule": "consensus"})
    with pytest.raises(ConfigError, match="consensus needs centroids"):
        pseudo_label.check_stage(both, "labels")
    voter = voters.of_stage(both, "one", one[0] / folder.WEIGHTS)
    few = {"centroids": np.zeros((3, 6)), "counts": np.ones(3)}
    with pytest.raises(ConfigError, match="3 centroids for one"):
        Labeller([voter], label_spaces.get("cityscapes19"), meshes.make_mesh(1), how=inference.Inference(), look=None, centroids=few)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"networks": ("one", "two")}, "networks=.*expected one stage"),
        ({"networks": ()}, "lacks networks"),
        ({"passes": 0}, "passes=0"),
        ({"size": (3,)}, "size="),
        ({"caps": 3}, "caps: a centroids stage has no such key: did you mean 'cap'"),
    ],
)
def test_mistakes_are_told(changes, told):
    with pytest.raises(ConfigError, match=told):
        centroids.check_stage(config(**changes), "between")
