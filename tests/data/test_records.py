import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image
from small_layouts import TABLE, gta5, image, label

from segjax.data import record_builder
from segjax.data.folders import FolderDataset
from segjax.data.readers.gta5 import GTA5
from segjax.data.records import RecordDataset
from segjax.errors import ConfigError, DataError

# One row of each layout and reader: every reader goes to records and back.
EACH = list({(row[0], row[1]): row for row in TABLE}.values())


def same(recorded, raw):
    assert len(recorded) == len(raw) and recorded.labelled == raw.labelled and recorded.label_space == raw.label_space
    for index in range(len(raw)):
        one, two = recorded[index], raw[index]
        assert one.keys() == two.keys() and one["name"] == two["name"] == recorded.name(index)
        for key in {"image", "label"} & two.keys():
            assert one[key].dtype == two[key].dtype and (one[key] == two[key]).all(), (index, key)
            assert (getattr(recorded, key)(index) == two[key]).all()


@pytest.mark.parametrize("layout, reader, keywords", [row[:3] for row in EACH], ids=lambda value: getattr(value, "__name__", None))
def test_recorded_equals_raw(tmp_path, layout, reader, keywords):
    layout(tmp_path / "raw")
    raw = reader(str(tmp_path / "raw"), **keywords)
    assert record_builder.build({"train": raw}, tmp_path / "records")
    recorded = RecordDataset(str(tmp_path / "records"))
    same(recorded, raw)
    assert repr(recorded) == repr(RecordDataset(str(tmp_path / "records")))


@pytest.fixture
def raw(tmp_path):
    """Images of every kind that must come back as the raw data set reads them, and 9 plain ones."""
    folder = tmp_path / "raw"
    for index in range(9):
        image(folder / f"images/{index}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(folder / "images/jpeg.jpg", quality=90)
    Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).save(folder / "images/grey.png")
    Image.fromarray(rng.integers(0, 256, (6, 8, 4), np.uint8)).save(folder / "images/alpha.png")
    Image.fromarray(rng.integers(0, 256, (6, 8, 4), np.uint8), "CMYK").save(folder / "images/cmyk.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (8, 6, 3), np.uint8)).save(folder / "images/turned.jpg", exif=turned)
    for path in (folder / "images").iterdir():
        label(folder / f"labels/{path.stem}.png", (len(path.stem), 255))
    return FolderDataset(str(folder / "images"), str(folder / "labels"))


def test_every_kind_of_image_and_the_bytes_that_are_kept(tmp_path, raw):
    record_builder.build({"val": raw}, tmp_path / "records")
    recorded = RecordDataset(str(tmp_path / "records"), split="val")
    same(recorded, raw)
    kept = {raw.name(i) for i in range(len(raw)) if recorded.encoded_image(i) == raw.pairs[i][0].read_bytes()}
    assert kept == {"jpeg.jpg", *(f"{index}.png" for index in range(9))}


def test_many_shards_in_order_and_tfds_alone_reads_them(tmp_path, raw, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(record_builder, "SHARD_BYTES", 700)
    record_builder.build({"train": raw, "val": raw}, tmp_path / "records", threads=3)
    builder = tfds.builder_from_directory(str(tmp_path / "records"))
    assert builder.info.splits["train"].num_examples == len(raw) and builder.info.splits["val"].num_shards > 3
    assert builder.info.features["label"].names == list(raw.label_space.classes)
    source = builder.as_data_source("train")
    for index in range(len(raw)):
        found = source[index]
        assert found["name"].decode() == raw.name(index) and (found["label"][..., 0] == raw.label(index)).all()
    same(RecordDataset(str(tmp_path / "records"), split="val"), raw)
    assert "tensorflow" not in sys.modules


def test_options_of_the_reader(tmp_path, raw):
    record_builder.build({"train": raw}, tmp_path / "records")
    directory = str(tmp_path / "records")
    small = RecordDataset(directory, resize=(3, 4), include=("1", "2"), exclude="2")
    assert [small.name(i) for i in range(len(small))] == ["1.png"] and small[0]["image"].shape == (3, 4, 3)
    same(small, FolderDataset(str(raw.root), str(raw.root.parent / "labels"), resize=(3, 4), names=["1"]))
    images = RecordDataset(directory).unlabelled()
    assert "label" not in images[0] and "label" not in RecordDataset(directory, labelled=False)[0]
    with pytest.raises(DataError, match="is unlabelled"):
        images.label(0)
    other = RecordDataset(directory, label_space="camvid11")
    same(other, FolderDataset(str(raw.root), str(raw.root.parent / "labels"), label_space="camvid11", encoding="cityscapes_trainId"))
    with pytest.raises(DataError, match="keep none"):
        RecordDataset(directory, include="zzz")


def test_pickles_small_and_opens_its_files_in_the_worker(tmp_path, raw):
    record_builder.build({"train": raw}, tmp_path / "records")
    recorded = RecordDataset(str(tmp_path / "records"))
    assert recorded[0]["name"] == raw.name(0)
    shipped = pickle.dumps(recorded)
    assert len(shipped) < 4000
    same(pickle.loads(shipped), raw)


def test_again_is_nothing_and_other_data_is_refused(tmp_path, raw):
    output = tmp_path / "records"
    written = []
    assert record_builder.build({"train": raw}, output, progress=written.append) and sum(written) == len(raw)
    before = sorted(path.stat().st_mtime_ns for path in output.iterdir())
    assert not record_builder.build({"train": raw}, output)
    assert before == sorted(path.stat().st_mtime_ns for path in output.iterdir())
    label(raw.root.parent / "labels/0.png", (5, 5))
    with pytest.raises(ConfigError, match="holds other records.*--overwrite"):
        record_builder.build({"train": raw}, output)
    assert record_builder.build({"train": raw}, output, overwrite=True)
    same(RecordDataset(str(output)), raw)
    with pytest.raises(ConfigError, match="holds no records of segjax"):
        record_builder.build({"train": raw}, raw.root)
    with pytest.raises(ConfigError, match="differ so"):
        record_builder.build({"train": raw, "test": raw.unlabelled()}, tmp_path / "both")


def test_an_interrupted_build_leaves_nothing_that_looks_finished(tmp_path, raw):
    output = tmp_path / "records"

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_builder.build({"train": raw}, output, progress=stop)
    assert not output.exists() and [path.name for path in tmp_path.iterdir()] == ["raw"]
    # What a killed build left behind is swept away by the next one.
    (tmp_path / ".records.building" / "old").mkdir(parents=True)
    record_builder.build({"train": raw}, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "records"]


def test_broken_examples_and_full_disks_are_one_line(tmp_path, raw, monkeypatch):
    whole = raw.pairs[3][0].read_bytes()
    raw.pairs[3][0].write_bytes(whole[:-60])
    with pytest.raises(DataError, match="3.png cannot be read.*cut off") as caught:
        record_builder.build({"train": raw}, tmp_path / "records")
    assert "\n" not in str(caught.value) and not (tmp_path / "records").exists()
    raw.pairs[3][0].write_bytes(whole)

    # A disk fills up in the record writer, which raises a RuntimeError, or anywhere else, which raises an OSError.
    for error in (OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on device; writing x")):
        monkeypatch.setattr(record_builder, "encode", lambda *args, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(DataError, match="no space left"):
            record_builder.build({"train": raw}, tmp_path / "records")


def test_one_build_at_a_time(tmp_path, raw):
    def second(count):
        with pytest.raises(ConfigError, match="another build is writing"):
            record_builder.build({"train": raw}, tmp_path / "records")

    assert record_builder.build({"train": raw}, tmp_path / "records", progress=second)


def test_records_that_are_not_there_or_damaged(tmp_path, raw):
    with pytest.raises(DataError, match="holds no records.*segjax data build"):
        RecordDataset(str(tmp_path))
    record_builder.build({"train": raw}, tmp_path / "records")
    with pytest.raises(DataError, match="has no split 'val', expected one of train"):
        RecordDataset(str(tmp_path / "records"), split="val")
    file = next((tmp_path / "records").glob("*array_record*"))
    content = file.read_bytes()
    file.write_bytes(content[:200] + bytes(300) + content[500:])
    dataset = RecordDataset(str(tmp_path / "records"))
    with pytest.raises(DataError, match="cannot be (read|opened).*segjax data build") as caught:
        for index in range(len(dataset)):
            dataset[index]
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="segjax data build"):
        RecordDataset(str(tmp_path / "records"))[0]


def test_metadata_names_the_space_and_the_sources(tmp_path):
    gta5(tmp_path / "raw")
    record_builder.build({"all": GTA5(str(tmp_path / "raw"))}, tmp_path / "records")
    found = json.loads((tmp_path / "records/segjax.json").read_text())
    assert found["label_space"]["name"] == "cityscapes19" and found["label_space"]["palette"][13] == [0, 0, 142]
    assert found["splits"]["all"]["names"] == ["00001.png", "00002.png", "20001.png", "22501.png"]
    assert found["splits"]["all"]["source"].startswith("GTA5(")
