"""Pseudo-labels: the released code's numbers, stylized images, thresholds over a whole set, stopping in the middle, flags and mistakes."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.data import label_spaces, pseudo
from segjax.data.dataset import Dataset
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes
from segjax.errors import ConfigError, DataError, Preempted
from segjax.ops import fourier, photometric
from segjax.ops.metrics import iou
from segjax.runtime import mesh as meshes
from segjax.verbs import inference, pseudo_label_files, pseudo_label_values, pseudo_label_work
from segjax.verbs.pseudo_label_network import Labeller, Voter
from segjax.verbs.pseudo_label_summary import summarize

SPACE = label_spaces.get("cityscapes19")
PLAIN = inference.Inference()


def voter(predict, state=(), **changes):
    return Voter(
        predict, state, **{"align_corners": False, "space": SPACE, "first": 0, "grey": False, "origin": "a", "sha256": "", **changes}
    )


def by_colour(state, frozen, image):
    """A network that has learned nothing: its logits are the pixels times a table."""
    del frozen
    return (image.astype(jnp.float32) / 255) @ state


def table(seed, classes=19):
    return 9 * jax.random.normal(jax.random.key(seed), (3, classes))


def job(dataset, **changes):
    spec = {**pseudo_label_values.DEFAULTS, "rule": "code", "batch_size": 8, **changes}
    return pseudo_label_values.job(spec, dataset, changes.get("style"), SPACE.classes, "--")


def make(place, work, voters=None, data=1):
    """Runs the whole work in a folder: (summary, sums)."""
    mesh = meshes.make_mesh(data)
    voters = voters or [voter(by_colour, table(0)), voter(by_colour, table(1))]
    labeller = Labeller(voters, work.dataset.label_space, mesh, how=work.how, look=work.look)
    return pseudo_label_work.make(work, labeller, mesh, place, {})


def contents(place):
    """Every file of the result."""
    return {
        path.relative_to(place): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file() and "partial" not in path.parts
    }


class Blank(Dataset):
    """Black images, for networks that do not look."""

    label_space = SPACE
    labelled = False

    def __init__(self, count, size):
        super().__init__()
        self.count, self.size = count, size

    def __len__(self):
        return self.count

    def __repr__(self):
        return "Blank()"

    def _load(self, index):
        return {"image": np.zeros((*self.size, 3), np.uint8), "name": f"{index}"}


@pytest.mark.parametrize("seed", [0, 1])
def test_multi_band_transfer_of_the_released_code(goldens, seed, tmp_path):
    golden = np.load(goldens / f"03_fda_mbt_pseudo_s{seed}.npz")
    logits = [golden[f"in_logits{n}"].transpose(0, 2, 3, 1) for n in (1, 2, 3)]
    count, height, width, _ = logits[0].shape
    answer = lambda state, frozen, image: state + 0 * image[..., :1]
    work = job(Blank(count, tuple(golden["par_out_hw"].tolist())), size=(height, width), batch_size=count)
    near = 1.5e-4  # the code's .3333, .3333, .3334 are no even mean, and thresholds are edges of bins
    summary, _ = make(tmp_path, work, [voter(answer, part, align_corners=True) for part in logits])
    np.testing.assert_allclose(summary["thresholds"], golden["out_thr"], atol=near)
    stable = golden["aux_stable"] & (np.abs(golden["out_prob"] - golden["out_thr"][golden["out_label"]]) > near)
    assert stable.mean() > 0.98
    for index in range(count):
        found = np.asarray(Image.open(tmp_path / f"labels/{index}.png"))
        np.testing.assert_array_equal(found[stable[index]], golden["out_pseudo"][index][stable[index]])


@pytest.mark.parametrize("grey", [False, True])
def test_images_take_the_look_of_the_next_style_image_in_order(grey, tmp_path):
    target, style = StreetScenes(size=(32, 64), look="dusk", length=5), StreetScenes(size=(48, 64), look="day", length=3)
    seen = (lambda image: photometric.greyscale(image.astype(jnp.float32))) if grey else (lambda image: image)
    predict = lambda state, frozen, image: by_colour(state, frozen, seen(image))
    work = job(target, style=style, beta=0.1, rule="none", batch_size=2)
    make(tmp_path, work, [voter(predict, table(3), grey=grey)])

    @jax.jit
    def answered(*pair):
        pair = [seen(jnp.asarray(image, jnp.float32)[None]) for image in pair]
        return jnp.argmax(predict(table(3), (), fourier.amplitude_transfer(*pair, 0.1)), -1)[0]

    for index in range(5):
        resized = np.asarray(Image.fromarray(style[index % 3]["image"]).resize((64, 32), Image.Resampling.BILINEAR))
        expected = answered(target[index]["image"], resized)
        found = np.asarray(Image.open(tmp_path / "labels" / pseudo.file_name(target.name(index))))
        assert np.mean(found == np.asarray(expected)) > 0.999
    plain = job(target, rule="none", batch_size=2)
    make(tmp_path / "plain", plain, [voter(predict, table(3), grey=grey)])
    assert contents(tmp_path / "plain") != contents(tmp_path)


def test_what_the_summary_says_is_what_the_files_hold(tmp_path):
    data = StreetScenes(size=(32, 64), look="dusk", length=6)
    summary, sums = make(tmp_path, job(data, share=0.5))
    labels = np.stack([np.asarray(Image.open(tmp_path / "labels" / name)) for name in pseudo.file_names(data)])
    truth = np.stack([data.label(index) for index in range(6)])
    assert summary == pseudo.read_summary(tmp_path) and summary["sizes"] == {"64x32": 6}
    assert summary["kept_pixels"] == np.mean(labels < 19) and sums.kept.tolist() == np.bincount(labels.ravel(), minlength=256)[:19].tolist()
    assert 0.45 < summary["kept_pixels"] < 0.55
    frequent = int(np.argmax(sums.kept))
    right = labels[(labels == frequent) & (truth < 19)] == truth[(labels == frequent) & (truth < 19)]
    assert summary["precision"]["kept"][frequent] == pytest.approx(right.mean())
    kept = (labels < 19) & (truth < 19)
    confusion = np.bincount(truth[kept].astype(int) * 19 + labels[kept], minlength=361).reshape(19, 19)
    np.testing.assert_array_equal(sums.confident[:, :19], confusion)
    assert np.allclose([np.nan if v is None else v for v in summary["iou"]["kept"]], iou(confusion), equal_nan=True)
    assert sums.every.sum() == (truth < 19).sum() and sums.histogram.sum() == labels.size
    found = pseudo.PseudoLabelled(data, tmp_path)
    np.testing.assert_array_equal(found.label(4), labels[4])
    assert Image.open(tmp_path / "pseudo.png").width >= 960


def test_mixed_sizes_and_a_size_of_their_own_for_the_networks(tmp_path):
    sizes = [(40, 30), (31, 47), (40, 30), (64, 32)]
    for index, size in enumerate(sizes):
        pixels = np.random.default_rng(index).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"{index}.png")
    data = FolderDataset(tmp_path)
    state = table(1)
    make(tmp_path / "out", job(data, rule="none", batch_size=3), [voter(by_colour, state)])
    make(tmp_path / "small", job(data, rule="none", size=(24, 24)), [voter(by_colour, state)])
    for index, (width, height) in enumerate(sizes):
        expected = np.asarray(jnp.argmax(by_colour(state, (), jnp.asarray(data.image(index))[None]), -1)[0])
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"out/labels/{index}.png")), expected)
        small = np.asarray(Image.open(tmp_path / f"small/labels/{index}.png"))
        assert small.shape == (height, width) and 0.6 < np.mean(small == expected)


def test_eight_devices_label_as_one_does(tmp_path):
    data = StreetScenes(size=(32, 64), look="dusk", length=11)
    make(tmp_path / "1", job(data), data=1)
    make(tmp_path / "8", job(data), data=8)
    one, eight = (contents(tmp_path / name) for name in "18")
    assert one.keys() == eight.keys()
    assert sum(one[path] == eight[path] for path in one) >= len(one) - 3  # a pixel on a threshold may fall to either side


def test_classes_of_another_space_go_by_the_map_between_them(tmp_path):
    camvid = label_spaces.get("camvid11")
    (tmp_path / "images").mkdir()
    Image.fromarray(StreetScenes(size=(32, 64), look="day", length=1)[0]["image"]).save(tmp_path / "images/a.png")
    data, with_nothing = FolderDataset(tmp_path / "images", label_space="camvid11"), table(0, 20)
    make(tmp_path / "out", job(data, rule="none"), [voter(by_colour, with_nothing, first=1)])
    answer = np.asarray(jnp.argmax(by_colour(with_nothing, (), jnp.asarray(data.image(0))[None]), -1)[0])
    expected = np.concatenate([[255], label_spaces.mapping(SPACE, camvid)])[answer]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/labels/a.png")), expected)
    with pytest.raises(ConfigError, match="a answers cityscapes19 and b camvid11"):
        make(tmp_path / "no", job(data), [voter(by_colour), voter(by_colour, space=camvid, origin="b")])


def _stop_after(monkeypatch, batches):
    """Asked to stop before batch number `batches`."""
    calls = itertools.count()
    monkeypatch.setattr(pseudo_label_work.Preemption, "requested", lambda self, step: "SIGTERM" if next(calls) == batches else None)


@pytest.mark.parametrize("rule", ["none", "code"])
def test_stopped_anywhere_it_ends_with_the_same_bytes(rule, tmp_path, monkeypatch):
    data = StreetScenes(size=(32, 64), look="dusk", length=7)
    work = job(data, rule=rule, batch_size=2)
    make(tmp_path / "whole", work)
    for batches in (1, 2):  # the second start goes on where the first stopped
        _stop_after(monkeypatch, batches)
        with pytest.raises(Preempted, match=r"SIGTERM: labelled \d of 7 images .* the same command goes on"):
            make(tmp_path / "broken", work)
        assert not (tmp_path / "broken" / pseudo.SUMMARY).exists()
    assert len(list((tmp_path / "broken/partial").rglob("*.npz" if rule == "none" else "raw/*.png"))) == 6
    monkeypatch.undo()
    finish, calls = pseudo_label_files.Files.finish, itertools.count()

    def killed(*args):
        if next(calls) == (0 if rule == "none" else 3):
            raise KeyboardInterrupt
        finish(*args)

    monkeypatch.setattr(pseudo_label_files.Files, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken", work)
    monkeypatch.undo()
    assert not (tmp_path / "broken" / pseudo.SUMMARY).exists()
    make(tmp_path / "broken", work)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_file_that_a_crash_left_damaged_is_made_again(tmp_path, monkeypatch):
    work = job(StreetScenes(size=(32, 64), look="dusk", length=4), batch_size=2)
    make(tmp_path / "whole", work)
    monkeypatch.setattr(pseudo_label_work, "_thresholds", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(tmp_path / "broken", work)
    monkeypatch.undo()
    raw = sorted((tmp_path / "broken/partial/raw").glob("*.png"))[1]
    raw.write_bytes(raw.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{raw.name} was damaged .* the same command makes it again"):
        make(tmp_path / "broken", work)
    make(tmp_path / "broken", work)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_batch_that_is_done_is_not_computed_again(tmp_path, monkeypatch):
    data = StreetScenes(size=(32, 64), look="dusk", length=6)
    work = job(data, batch_size=2)
    _stop_after(monkeypatch, 2)
    with pytest.raises(Preempted):
        make(tmp_path, work)
    monkeypatch.undo()
    seen = []
    call = Labeller.__call__
    monkeypatch.setattr(Labeller, "__call__", lambda self, arrays, **static: seen.append(1) or call(self, arrays, **static))
    make(tmp_path, work)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "cod"}, ["rule='cod'", "did you mean 'code'"]),
        ({"variant": "centered"}, ["did you mean 'centred'"]),
        ({"beta": 0.6}, ["beta=0.6", "0 to 0.5"]),
        ({"share": 2}, ["share=2"]),
        ({"cap": "x"}, ["cap='x'"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"size": (3,)}, ["size=(3,)", "(height, width)"]),
        ({"window": (8, 8), "stride": (9, 9)}, ["stride"]),
        ({"upsample": "prediction"}, ["upsample"]),
    ],
)
def test_wrong_values(changes, words):
    with pytest.raises(ConfigError) as caught:
        pseudo_label_values.check({**pseudo_label_values.DEFAULTS, **changes}, "config.stages.p.")
    assert all(word in str(caught.value) for word in words) and str(caught.value).startswith("config.stages.p."), caught.value


def test_a_summary_of_nothing_has_no_numbers_that_are_none(tmp_path):
    data = StreetScenes(size=(32, 64), look="dusk", length=1)
    zeros = {name: np.zeros(shape, np.int64) for name, shape in {"histogram": (19, 100), "kept": 19}.items()}
    every = np.zeros((19, 20), np.int64)
    sums = pseudo_label_files.Sums(**zeros, pixels=np.int64(4), every=every, confident=every)
    found = json.loads(json.dumps(summarize(job(data), sums, {}, np.zeros(19)), allow_nan=False))
    assert found["kept"] == [None] * 19 and found["iou"]["kept"] == [None] * 19 and found["kept_pixels"] == 0
