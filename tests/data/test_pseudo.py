"""Images with pseudo-labels from a folder: what is read, and every way in which the folder does not fit, in one line."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from segjax.data import label_spaces, pseudo, sealed
from segjax.data.evaluation import evaluation_batches
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes
from segjax.data.pseudo import PseudoLabelled
from segjax.errors import DataError

SCENES = StreetScenes(size=(32, 64), split="train", look="dusk", length=4)


def write(root, dataset=SCENES, space=None, size=None):
    """A whole folder of pseudo-labels: label i holds train id i everywhere."""
    space, lines = space or dataset.label_space, ""
    for index, name in enumerate(pseudo.file_names(dataset)):
        path = root / pseudo.LABELS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size or dataset.image_size(index), index, np.uint8)).save(path)
        lines += f"{hashlib.sha256(path.read_bytes()).hexdigest()}  labels/{name}\n"
    (root / pseudo.SUMS).write_text(lines)
    summary = {"label_space": space.name, "classes": list(space.classes), "labels_sha256": hashlib.sha256(lines.encode()).hexdigest()}
    (root / pseudo.SUMMARY).write_text(json.dumps({**summary, "sha256": sealed.digest(summary)}))
    return root


def test_images_with_the_folders_labels_and_none_of_their_own(tmp_path):
    found = PseudoLabelled(SCENES, write(tmp_path))
    assert (len(found), found.labelled, found.name(2), found.image_size(2)) == (4, True, SCENES.name(2), (32, 64))
    np.testing.assert_array_equal(found[2]["image"], SCENES[2]["image"])
    assert (found[2]["label"] == 2).all() and (found.label(3) == 3).all() and found.label_space == SCENES.label_space
    assert "label" not in found.unlabelled()[0]
    batch = next(iter(evaluation_batches(found, batch_size=4)))
    assert batch["label"][:, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_part_of_the_labelled_images_will_do(tmp_path):
    write(tmp_path)
    found = PseudoLabelled(StreetScenes(size=(32, 64), split="train", look="dusk", length=2), tmp_path)
    assert len(found) == 2 and (found[1]["label"] == 1).all()


def test_the_folders_contents_are_in_its_description_and_its_place_is_not(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    same = [repr(PseudoLabelled(SCENES, write(root))) for root in (a, b)]
    assert same[0] == same[1] and "day" not in same[0] and str(tmp_path) not in same[0]
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(write(c) / pseudo.LABELS / "dusk-train-00003.png")
    text = (c / pseudo.SUMS).read_text().splitlines()
    text[3] = f"{hashlib.sha256((c / 'labels/dusk-train-00003.png').read_bytes()).hexdigest()}  labels/dusk-train-00003.png"
    (c / pseudo.SUMS).write_text("\n".join(text) + "\n")
    summary = json.loads((c / pseudo.SUMMARY).read_text()) | {"labels_sha256": hashlib.sha256((c / pseudo.SUMS).read_bytes()).hexdigest()}
    (c / pseudo.SUMMARY).write_text(json.dumps(summary | {"sha256": sealed.digest(summary)}))
    assert repr(PseudoLabelled(SCENES, c)) != same[0]


def test_names_become_files_inside_the_folder(tmp_path):
    assert pseudo.file_name("ulm/ulm_000000_000019_leftImg8bit.png") == "ulm/ulm_000000_000019_leftImg8bit.png"
    assert pseudo.file_name("0001TP_006690.JPG") == "0001TP_006690.png"
    assert pseudo.file_name("frame.0001") == "frame.0001.png"  # no image's suffix
    assert pseudo.file_name("/else/../where/a.png") == "else/where/a.png"
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    listed = FolderDataset(tmp_path, file_list=(("a.jpg",), ("a.png",)))
    with pytest.raises(DataError, match=r"a\.jpg and a\.png .* would share the label file a\.png"):
        pseudo.file_names(listed)


def _rewrite(root, **changes):
    summary = json.loads((root / pseudo.SUMMARY).read_text())
    (root / pseudo.SUMMARY).write_text(json.dumps(summary | changes))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


LABEL = "labels/dusk-train-00002.png"
FAULTS = {
    "no folder": (lambda root: root.rename(root.with_name("gone")), ["no such folder", "segjax pseudo-label"]),
    "half written": (lambda root: (root / pseudo.SUMMARY).unlink(), ["has no pseudo.json", "not whole"]),
    "summary cut off": (lambda root: _cut(root / pseudo.SUMMARY), ["pseudo.json cannot be read"]),
    "edited settings": (lambda root: _rewrite(root, classes=["road"]), ["pseudo.json was changed after it was written"]),
    "sums gone": (lambda root: (root / pseudo.SUMS).unlink(), ["labels.sha256 is missing"]),
    "label missing": (lambda root: (root / LABEL).unlink(), [LABEL, "is missing", "anew"]),
    "label cut off": (lambda root: _cut(root / LABEL), [LABEL, "is damaged or was changed", "anew"]),
    "several": (lambda root: [_cut(path) for path in root.glob("labels/*.png")], ["00000.png is damaged", "(and 3 more of 4)"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_whole(fault, tmp_path):
    change, words = FAULTS[fault]
    root = write(tmp_path / "pseudo")
    change(root)
    with pytest.raises(DataError) as caught:
        PseudoLabelled(SCENES, root)
    assert caught.value.code == 3 and "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_a_folder_of_other_images_sizes_or_classes(tmp_path):
    root = write(tmp_path / "a")
    with pytest.raises(DataError, match=r"2 of 6 images of .* have no label there, first \['labels/dusk-train-00004.png'"):
        PseudoLabelled(StreetScenes(size=(32, 64), split="train", look="dusk", length=6), root)
    with pytest.raises(DataError, match=r"00000.png is 64x32 but dusk-train-00000 is 96x48: give the images the size"):
        PseudoLabelled(StreetScenes(size=(48, 96), split="train", look="dusk", length=4), root)
    other = write(tmp_path / "b", space=label_spaces.get("camvid11"))
    with pytest.raises(DataError, match="its labels are camvid11 with 11 classes, but .*is cityscapes19 with 19"):
        PseudoLabelled(SCENES, other)


def test_a_later_label_of_another_size_is_named_when_it_is_read(tmp_path):
    for index, size in enumerate([(8, 6), (10, 6)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    images = FolderDataset(tmp_path)
    found = PseudoLabelled(images, write(tmp_path / "pseudo", images, size=(6, 8)))
    assert found[0]["label"].shape == (6, 8)
    with pytest.raises(DataError, match=r"labels/1\.png is 8x6 but 1\.png is 10x6"):
        found[1]
