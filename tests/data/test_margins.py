"""Borders that do not count: cut and mirrored with their pictures, refused where nothing is left."""

import numpy as np
import pytest

from segjax.data.margins import Margins
from segjax.data.pipeline import training_batches
from segjax.data.procedural import StreetScenes
from segjax.errors import ConfigError

SCENES = StreetScenes(size=(48, 64), length=3)


def test_margins_go_with_the_picture_through_crop_and_flip():
    dataset = Margins(SCENES, top=5, bottom=9, left=3, right=12)
    whole = dataset[1]["label"]
    assert set(np.unique(whole)) == {0, 255} and (whole == 0).sum() == (48 - 14) * (64 - 15) and dataset.label(1).tolist() == whole.tolist()
    assert "label" not in dataset.unlabelled()[0] and len(dataset) == 3 and dataset.name(2) == SCENES.name(2)
    pictures = [dataset[n]["image"] for n in range(3)]
    options = dict(seed=0, batch_size=6, steps=2, crop=(32, 40), target_labels=True)
    mirrored = set()
    for batch in training_batches(SCENES, dataset, **options):
        for image, label in zip(batch["target_image"], batch["target_label"], strict=True):
            found = [
                (flip, np.array_equal(label, _turned(whole, flip)[y : y + 32, x : x + 40]))
                for picture in pictures
                for flip in (False, True)
                for y in range(17)
                for x in range(25)
                if np.array_equal(image, _turned(picture, flip)[y : y + 32, x : x + 40])
            ]
            assert any(same for _, same in found)
            mirrored |= {flip for flip, same in found if same}
    assert mirrored == {False, True}


def _turned(array, flip):
    return array[:, ::-1] if flip else array


def test_margins_that_leave_nothing_are_refused():
    for margins in ({"top": 40, "bottom": 8}, {"left": -1}):
        with pytest.raises(ConfigError, match="of 64x48: expected 0 or more"):
            Margins(SCENES, **margins)
