import numpy as np
import pytest
from PIL import Image

from segjax.data.check import check
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        for kind, array in (("images", np.zeros((8, 10, 3), np.uint8)), ("labels", np.full((8, 10), index % 3, np.uint8))):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{index}.png")
    return tmp_path


def walk(folder, **keywords):
    return check(FolderDataset(str(folder / "images"), str(folder / "labels"), strict=False), **keywords)


def test_a_good_folder(folder):
    findings = walk(folder)
    assert findings.ok and findings.examples == 6 and findings.sizes == {(8, 10): 6}
    assert findings.pixels[:3].tolist() == [160, 160, 160] and findings.images_with[:3].tolist() == [2, 2, 2]
    assert findings.never[0] == "wall" and len(findings.never) == 16 and "never occur: wall" in findings.hints[0]


def test_every_fault_is_found_in_one_walk(folder):
    Image.fromarray(np.full((8, 10), 77, np.uint8)).save(folder / "labels" / "0.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(folder / "labels" / "1.png")
    (folder / "images" / "2.png").write_bytes(b"<html>sign in</html>")
    Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(folder / "labels" / "3.png")
    Image.fromarray(np.full((8, 10), 255, np.uint8)).save(folder / "labels" / "4.png")
    (folder / "labels" / "5.png").rename(folder / "labels" / "6.png")
    seen = []
    findings = walk(folder, progress=lambda done, total: seen.append((done, total)))
    assert not findings.ok and seen == [(k, 5) for k in range(1, 6)]
    assert findings.unpaired_images == ["5"] and findings.unpaired_labels == ["6"]
    assert [name for name, _ in findings.bad_ids] == ["0.png"] and "[77]" in findings.bad_ids[0][1]
    assert [name for name, _ in findings.size_mismatch] == ["1.png"]
    assert [name for name, _ in findings.unreadable] == ["2.png", "3.png"]
    assert findings.all_ignored == ["4.png"] and len(findings.problems) == 6
    assert walk(folder, threads=1).problems == findings.problems


def test_binary_masks_are_suspected(folder):
    for index in range(6):
        Image.fromarray(np.array([[0, 255]] * 8, np.uint8).repeat(5, 1)).save(folder / "labels" / f"{index}.png")
    assert any("binary masks" in hint for hint in walk(folder).hints)


def test_any_data_set_and_a_limit():
    findings = check(StreetScenes(size=(64, 128)), limit=4, threads=2)
    assert findings.ok and findings.examples == 4 and findings.pixels.sum() == 4 * 64 * 128
    unlabelled = check(StreetScenes(size=(64, 128)).unlabelled(), limit=2)
    assert unlabelled.ok and unlabelled.never == () and unlabelled.hints == []


def test_real_camvid_is_clean(real_data):
    dataset = FolderDataset(file_list=str(real_data / "camvid/val.txt"), label_space="camvid11")
    findings = check(dataset, limit=20)
    assert findings.ok and findings.sizes == {(360, 480): 20} and findings.pixels[255] > 0
