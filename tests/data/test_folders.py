import numpy as np
import pytest
from PIL import Image

from segjax.data.files import read_image
from segjax.data.folders import FolderDataset
from segjax.errors import DataError


def write(path, array, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **keywords)


@pytest.fixture
def folder(tmp_path):
    """Three pairs of 12x20, labels 0, 1, 2 with a void corner."""
    rng = np.random.default_rng(0)
    for index in range(3):
        write(tmp_path / "images" / f"{'ab'[index % 2]}{index}.png", rng.integers(0, 256, (12, 20, 3), np.uint8))
        label = np.full((12, 20), index, np.uint8)
        label[:2, :2] = 255
        write(tmp_path / "labels" / f"{'ab'[index % 2]}{index}.png", label)
    return tmp_path


def make(folder, **keywords):
    return FolderDataset(str(folder / "images"), str(folder / "labels"), **keywords)


def broken(folder, match, **keywords):
    with pytest.raises(DataError, match=match) as caught:
        dataset = make(folder, **keywords)
        [dataset[i] for i in range(len(dataset))]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_pairs_in_order(folder):
    dataset = make(folder)
    assert [dataset[i]["name"] for i in range(3)] == ["a0.png", "a2.png", "b1.png"]
    example = dataset[2]
    assert example["image"].shape == (12, 20, 3) and example["image"].dtype == np.uint8
    assert example["label"].dtype == np.uint8 and set(np.unique(example["label"])) == {1, 255}
    assert repr(dataset) == repr(make(folder))
    with pytest.raises(IndexError):
        dataset[3]


def test_linked_folders_are_searched_and_hidden_files_are_not(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for side in ("images", "labels"):
        (folder / side).rename(elsewhere / side)
        (folder / side).mkdir()
        (folder / side / "city").symlink_to(elsewhere / side)
    (elsewhere / "images" / "._a0.png").write_bytes(b"a Mac was here")
    (elsewhere / "images" / "dir.png").mkdir()
    dataset = make(folder)
    assert [dataset.name(i) for i in range(3)] == ["city/a0.png", "city/a2.png", "city/b1.png"] and dataset.label(1).max() == 255


def test_include_exclude_resize_cache(folder):
    dataset = make(folder, include=("a",), exclude="a2", resize=(6, 10), cache=True)
    assert len(dataset) == 1 and dataset[0]["image"].shape == (6, 10, 3) and dataset[0]["label"].shape == (6, 10)
    assert dataset[0]["image"] is dataset[0]["image"] and not dataset[0]["image"].flags.writeable
    broken(folder, "keep none", include=("zzz",))
    shorter = make(folder, resize=24)  # of 12x20, in image and label alike
    assert shorter.image_size(0) == (24, 40) == shorter[0]["label"].shape == shorter[0]["image"].shape[:2]


def test_unlabelled_never_opens_a_label(folder):
    labelled = make(folder)
    for path in (folder / "labels").iterdir():
        path.write_bytes(b"garbage")
    for dataset in (labelled.unlabelled(), make(folder, labelled=False), FolderDataset(str(folder / "images"))):
        assert not dataset.labelled and "label" not in dataset[0]
    with pytest.raises(DataError):
        labelled[0]


def test_palette_label_is_read_as_indices(folder):
    picture = Image.fromarray(np.tile(np.array([[0, 1, 2, 7]], np.uint8), (12, 5)))
    picture.putpalette([90, 90, 90, 30, 30, 30] * 8)
    picture.save(folder / "labels" / "a0.png")
    assert set(np.unique(make(folder)[0]["label"])) == {0, 1, 2, 7}


def test_id_out_of_range_names_file_ids_and_cause(folder):
    write(folder / "labels" / "a2.png", np.full((12, 20), 26, np.uint8))
    message = broken(folder, "out of range")
    assert "a2.png" in message and "[26]" in message and "encoding='labelId'" in message and "0..18 or 255" in message
    write(folder / "labels" / "a2.png", np.arange(240, dtype=np.uint8).reshape(12, 20))
    assert "picture" in broken(folder, "out of range")
    write(folder / "labels" / "a2.png", np.full((12, 20), 50, np.uint8))
    assert "mapillary" in broken(folder, "out of range", encoding="labelId")


def test_size_mismatch(folder):
    write(folder / "labels" / "b1.png", np.zeros((10, 20), np.uint8))
    message = broken(folder, "must have its image's size")
    assert "b1.png is 20x10" in message and "is 20x12" in message


def test_missing_and_orphan_files_are_listed(folder):
    (folder / "labels" / "a0.png").unlink()
    write(folder / "labels" / "zz.png", np.zeros((12, 20), np.uint8))
    message = broken(folder, "have no label")
    assert "['a0']" in message and "['zz']" in message
    (folder / "labels" / "zz.png").rename(folder / "labels" / "A0.png")
    assert "upper and lower case" in broken(folder, "have no label")


def test_empty_and_absent_folders(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for images, match in ((empty, "holds no image"), (empty / "no", "does not exist")):
        with pytest.raises(DataError, match=match):
            FolderDataset(str(images))
    with pytest.raises(DataError, match="needs `images`"):
        FolderDataset()


@pytest.mark.parametrize(
    "array, match",
    [
        (np.zeros((12, 20, 3), np.uint8), "colour picture"),
        (np.full((12, 20), 4464, np.uint16), "one 8-bit channel"),
    ],
)
def test_masks_that_hold_no_ids(folder, array, match):
    write(folder / "labels" / "a0.png", array)
    assert "a0.png" in broken(folder, match)


def test_images_that_cannot_be_read(folder):
    path = folder / "images" / "a0.png"
    whole = path.read_bytes()
    for data, match in ((whole[: len(whole) // 2], "cut off"), (b"", "empty"), (b"<!DOCTYPE html><html>login", "HTML page")):
        path.write_bytes(data)
        assert "a0.png" in broken(folder, match)
    path.write_bytes(whole[:11] + b"\x05" + whole[12:])  # a header shorter than PNG's own: PIL raises ValueError, not its own error
    assert "a0.png" in broken(folder, "damaged or cut off")
    write(path, np.zeros((12, 20), np.uint16))
    broken(folder, "8-bit image")
    with pytest.raises(DataError, match="Is a directory"):
        read_image(folder)


def test_grey_rgba_and_rotated_images_become_upright_rgb(folder):
    write(folder / "images" / "a0.png", np.full((12, 20), 7, np.uint8))
    write(folder / "images" / "a2.png", np.full((12, 20, 4), 9, np.uint8))
    dataset = make(folder)
    assert (dataset[0]["image"] == 7).all() and dataset[1]["image"].shape == (12, 20, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "images" / "b1.png", np.zeros((20, 12, 3), np.uint8), exif=exif)
    assert dataset[2]["image"].shape == (12, 20, 3)


def test_list_file(folder):
    lines = folder / "train.txt"
    lines.write_text("# comment\nimages/a0.png labels/a0.png\n\nimages/b1.png labels/b1.png\n")
    dataset = FolderDataset(file_list=str(lines))
    assert [dataset[i]["name"] for i in range(2)] == ["images/a0.png", "images/b1.png"] and dataset.labelled
    lines.write_text("images/a0.png labels/a0.png\nimages/no.png labels/no.png\nimages/b1.png\n")
    with pytest.raises(DataError, match=r"1 images, first \['.*images/no.png'\]; 1 labels"):
        FolderDataset(file_list=str(lines))
    lines.write_text("images/a0.png labels/a0.png\nimages/b1.png\n")
    with pytest.raises(DataError, match="1 images have no label"):
        FolderDataset(file_list=str(lines))
    assert len(FolderDataset(file_list=str(lines), labelled=False)) == 2
    lines.write_text("images/a0.png labels/not-here.png\n")
    assert "label" not in FolderDataset(file_list=str(lines), labelled=False)[0]
    lines.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match="train.txt cannot be read as a text file"):
        FolderDataset(file_list=str(lines))
    lines.write_text("a b c\n")
    with pytest.raises(DataError, match="train.txt:1 has 3 words"):
        FolderDataset(file_list=str(lines))


def test_cityscapes_layout(tmp_path):
    for city in ("aachen", "bonn"):
        stem = f"{city}_000000_000019"
        write(tmp_path / "img" / city / f"{stem}_leftImg8bit.png", np.zeros((4, 8, 3), np.uint8))
        write(tmp_path / "gt" / city / f"{stem}_gtFine_labelIds.png", np.full((4, 8), 26, np.uint8))
        write(tmp_path / "gt" / city / f"{stem}_gtFine_labelTrainIds.png", np.full((4, 8), 14, np.uint8))
        write(tmp_path / "gt" / city / f"{stem}_gtFine_color.png", np.zeros((4, 8, 3), np.uint8))
    folders = str(tmp_path / "img"), str(tmp_path / "gt")
    assert (FolderDataset(*folders, encoding="labelId")[1]["label"] == 13).all()
    assert (FolderDataset(*folders)[0]["label"] == 14).all()
    # One missing file is missing: a train-id file in its place would be legal among label ids, and wrong.
    (tmp_path / "gt" / "bonn" / "bonn_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"1 images of .* have no label, first \['bonn"):
        FolderDataset(*folders, encoding="labelId")
    (tmp_path / "gt" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match="has no labelId files, but trainId files such as aachen.*: choose that encoding"):
        FolderDataset(*folders, encoding="labelId")


def test_real_camvid_list_and_cityscapes_tuple(real_data):
    day = FolderDataset(file_list=str(real_data / "camvid/train.txt"), label_space="camvid11", include=("0006R0", "0016E5"))
    assert len(day) == 305
    example = day[0]
    assert example["image"].shape == (360, 480, 3) and set(np.unique(example["label"])) <= {*range(11), 255}
    sample = real_data / "samples/cityscapes"
    city = FolderDataset(str(sample / "leftImg8bit/train"), str(sample / "gtFine/train"), encoding="labelId")
    label = city[0]["label"]
    assert label.shape == (1024, 2048) and {0, 2, 13} <= set(np.unique(label))
