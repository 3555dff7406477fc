import numpy as np
import pytest
from PIL import Image

from segjax.data import files
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes
from segjax.errors import DataError


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        for side, array in (("images", rng.integers(0, 256, (8, 12, 3), np.uint8)), ("labels", rng.integers(0, 19, (8, 12), np.uint8))):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / side / f"{index}.png")
    return str(tmp_path / "images"), str(tmp_path / "labels")


@pytest.mark.parametrize("resize", [None, (4, 6)])
@pytest.mark.parametrize("cache", [False, True])
def test_halves_equal_the_whole(folders, resize, cache):
    for dataset in (FolderDataset(*folders, resize=resize, cache=cache), StreetScenes(size=(32, 64), length=2, cache=cache)):
        for _ in range(2):  # the second time from the cache
            assert dataset.name(-1) == dataset.name(1) == dataset[1]["name"]
            assert (dataset.image(1) == dataset[1]["image"]).all() and (dataset.label(1) == dataset[1]["label"]).all()
        with pytest.raises(IndexError):
            dataset.label(2)


def test_each_half_reads_its_own_file_alone(folders, monkeypatch):
    dataset = FolderDataset(*folders)
    opened = []
    monkeypatch.setattr(files.Image, "open", lambda path, inner=Image.open: opened.append(path) or inner(path))
    dataset.name(0)
    assert opened == []
    dataset.label(0)
    assert [path.parent.name for path in opened] == ["labels"]
    dataset.image(1)
    assert [path.parent.name for path in opened] == ["labels", "images"]


def test_an_unlabelled_set_has_no_label(folders):
    for dataset in (FolderDataset(*folders).unlabelled(), StreetScenes(size=(32, 64), labelled=False)):
        with pytest.raises(DataError, match="is unlabelled"):
            dataset.label(0)
