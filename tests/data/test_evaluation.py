"""A data set once over: every example exactly once, fixed shapes, few of them, the same on every host."""

import numpy as np
import pytest
from PIL import Image

from segjax.data import label_spaces
from segjax.data.dataset import Dataset
from segjax.data.evaluation import evaluation_batches, groups
from segjax.data.files import read_image, read_image_size
from segjax.data.procedural import StreetScenes
from segjax.data.transforms import checked, fitted
from segjax.errors import ConfigError, DataError


class Sized(Dataset):
    """Example i has the i-th size; its image and label hold i."""

    label_space = label_spaces.get("cityscapes19")

    def __init__(self, sizes, labelled=True, label_sizes=None):
        super().__init__()
        self.sizes, self.labelled, self.label_sizes = sizes, labelled, label_sizes or sizes

    def __len__(self):
        return len(self.sizes)

    def __repr__(self):
        return f"Sized({len(self)})"

    def _load(self, index):
        example = {"image": np.full((*self.sizes[index], 3), index, np.uint8), "name": f"{index}.png"}
        return example | {"label": np.full(self.label_sizes[index], index, np.uint8)} if self.labelled else example


FIVE = [(12, 16)] * 5


def test_visits_all_once_and_pads():
    batches = list(evaluation_batches(Sized(FIVE), batch_size=2, size=(6, 8)))
    assert [b["name"] for b in batches] == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png", ""]]
    last = batches[-1]
    assert last["image"].shape == (2, 6, 8, 3) and last["label"].shape == (2, 12, 16) and last["canvas"] == (12, 16)
    assert last["index"].tolist() == [4, -1] and (last["label"][1] == 255).all() and (last["label"][0] == 4).all()
    unlabelled = next(evaluation_batches(Sized(FIVE, labelled=False), batch_size=2, size=(6, 8)))
    assert "label" not in unlabelled and unlabelled["canvas"] == (12, 16) and unlabelled["size"].tolist() == [[12, 16]] * 2


def test_the_shorter_edge_of_images_that_differ():
    """Each shape at its own ratio; of a padded canvas, the canvas's. Labels keep their size."""
    kinds = Sized([(12, 16), (16, 12), (12, 20)])
    shapes = [(b["image"].shape[1:3], b["label"].shape[1:], b["exact"]) for b in evaluation_batches(kinds, batch_size=1, size=24)]
    assert shapes == [((24, 32), (12, 16), True), ((32, 24), (16, 12), True), ((24, 40), (12, 20), True)]
    (only,) = evaluation_batches(kinds, batch_size=3, size=24, max_shapes=1)
    assert only["image"].shape == (3, 24, 24, 3) and only["canvas"] == (32, 32) and not only["exact"]
    assert fitted((720, 1280), 1024) == (1024, 1820) and fitted((3264, 2448), 1024) == (1365, 1024) and fitted((7, 9), (3, 4)) == (3, 4)
    for wrong in (0.5, -3, (4,), "1024"):
        with pytest.raises(ConfigError, match="size=.*shorter edge"):
            checked(wrong, "size")


def test_hosts_share_the_global_batches():
    mixed = Sized([(4, 6), (5, 6), (4, 6), (5, 7), (4, 6)])
    for options in ({}, {"max_shapes": 1}):
        whole = list(evaluation_batches(mixed, batch_size=2, **options))
        parts = [list(evaluation_batches(mixed, batch_size=2, process_index=p, process_count=2, **options)) for p in range(2)]
        for full, a, b in zip(whole, *parts, strict=True):
            assert full["name"] == a["name"] + b["name"] and full["canvas"] == a["canvas"] == b["canvas"]
            assert full["exact"] == a["exact"] == b["exact"]
            assert (full["label"] == np.concatenate([a["label"], b["label"]])).all()


def test_few_sizes_are_kept_and_grouped():
    found = groups(Sized([(4, 6), (5, 6), (4, 6)]))
    assert [(g.canvas, g.exact, g.indices) for g in found] == [((4, 6), True, (0, 2)), ((5, 6), True, (1,))]
    batches = list(evaluation_batches(Sized([(4, 6), (5, 6), (4, 6)]), batch_size=2))
    assert [b["name"] for b in batches] == [["0.png", "2.png"], ["1.png", ""]]
    assert [b["image"].shape[1:3] for b in batches] == [(4, 6), (5, 6)]


def test_many_sizes_are_padded_to_few_canvases():
    sizes = [(20 + i, 40 + 3 * i) for i in range(20)]
    found = groups(Sized(sizes))
    assert 1 < len(found) <= 8 and sorted(i for g in found for i in g.indices) == list(range(20))
    assert all(side % 32 == 0 for g in found for side in g.canvas)
    assert len(groups(Sized(sizes), max_shapes=1)) == 1
    for batch in evaluation_batches(Sized(sizes), batch_size=3):
        assert not batch["exact"] and batch["image"].shape[1:3] == batch["label"].shape[1:] == batch["canvas"]
        for row, index in enumerate(batch["index"]):
            if index >= 0:
                height, width = sizes[index]
                assert batch["size"][row].tolist() == [height, width]
                assert (batch["image"][row] == index).all()
                assert (batch["label"][row, :height, :width] == index).all()
                assert (batch["label"][row] == index).sum() == height * width and (batch["label"][row] == 255).sum() > 0
    resized = list(evaluation_batches(Sized(sizes), batch_size=3, size=(8, 8)))
    assert {b["image"].shape for b in resized} == {(3, 8, 8, 3)} and len({b["label"].shape for b in resized}) == len(found)


def test_errors():
    with pytest.raises(DataError, match="is empty"):
        evaluation_batches(Sized([]), batch_size=2)
    with pytest.raises(DataError, match="label of 1.png is 5x4 but 0.png is 6x4"):
        list(evaluation_batches(Sized(FIVE[:2], label_sizes=[(4, 6), (4, 5)]), batch_size=2))
    with pytest.raises(DataError, match="label of 1.png is 5x4 but its image is 6x4"):
        list(evaluation_batches(Sized([(4, 6), (4, 6), (5, 6)], label_sizes=[(4, 6), (4, 5), (5, 6)]), batch_size=2, max_shapes=1))


def test_sizes_from_headers_are_those_of_the_images(tmp_path):
    for orientation in (1, 3, 6, 8):
        image = Image.new("RGB", (10, 7))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / f"{orientation}.jpg", exif=exif)
        assert read_image_size(tmp_path / f"{orientation}.jpg") == read_image(tmp_path / f"{orientation}.jpg").shape[:2]
    assert {read_image_size(path) for path in tmp_path.iterdir()} == {(7, 10), (10, 7)}
    scenes = StreetScenes(size=(32, 64), length=1)
    assert scenes.image_size(0) == scenes.image(0).shape[:2]
