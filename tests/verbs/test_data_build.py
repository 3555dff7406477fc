import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data.readers.camvid import CamVid
from segjax.data.records import RecordDataset


@pytest.fixture
def camvid(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in (split, f"{split}annot"):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
        for index in range(3):
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / f"CamVid/{split}/{index}.png")
            Image.fromarray(rng.integers(0, 12, (6, 8), np.uint8)).save(tmp_path / f"CamVid/{split}annot/{index}.png")
    return tmp_path


def verb(capsys, *arguments):
    code = cli.main(["data", "build", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_splits_of_a_reader_by_its_short_name(camvid, capsys):
    flags = "--dataset=camvid", f"--root={camvid / 'CamVid'}", "--split=train,val", f"--output={camvid / 'records'}"
    code, out, err = verb(capsys, *flags)
    assert code == 0 and out.count("3 examples written") == 2 and "6/6" in err
    for split in ("train", "val"):
        raw, recorded = CamVid(str(camvid / "CamVid"), split=split), RecordDataset(str(camvid / "records"), split=split)
        assert all((recorded[i]["image"] == raw[i]["image"]).all() and (recorded.label(i) == raw.label(i)).all() for i in range(3))
    code, out, _ = verb(capsys, *flags)
    assert code == 0 and out.count("already there") == 2
    code, _, err = verb(capsys, *flags, "--resize=4x2")
    assert code == 2 and "holds other records" in err and len(err.splitlines()) == 1
    assert verb(capsys, *flags, "--resize=4x2", "--overwrite")[0] == 0
    assert RecordDataset(str(camvid / "records"))[0]["image"].shape == (2, 4, 3)


def test_a_data_set_of_a_config(camvid, capsys):
    file = camvid / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    source = {{'make': 'segjax.data.readers.camvid:CamVid', 'root': {str(camvid / 'CamVid')!r}, 'split': 'val'}}\n"
        "    stage = {'data': {'source': source}, 'evaluate': {}}\n"
        "    return ConfigDict({'order': ('a',), 'stages': {'a': stage}})\n"
    )
    code, _, err = verb(capsys, f"--config={file}", f"--output={camvid / 'records'}")
    assert code == 2 and "stages.a.data.source" in err
    assert verb(capsys, f"--config={file}", "--part=stages.a.data.source", f"--output={camvid / 'records'}")[0] == 0
    assert len(RecordDataset(str(camvid / "records"), split="val")) == 3


@pytest.mark.parametrize(
    "flags, code, match",
    [
        (("--dataset=camvids", "--root=."), 2, "did you mean 'camvid'"),
        (("--dataset=camvid", "--root=gone"), 3, "is not a folder"),
        (("--dataset=camvid", "--root=HERE", "--with=resise=(2,2)"), 2, "takes no such argument: did you mean 'resize'"),
        (("--dataset=camvid", "--root=gone", "--resize=12"), 2, "--resize=12: expected WIDTHxHEIGHT"),
        (("--dataset=camvid", "--root=gone", "--part=x"), 2, "goes with --config"),
        (("--threads=-1", "--dataset=camvid", "--root=gone"), 2, "--threads=-1"),
        ((), 2, "expected one of --dataset"),
    ],
)
def test_mistakes_are_one_line(camvid, capsys, flags, code, match):
    flags = [flag.replace("HERE", str(camvid / "CamVid")) for flag in flags]
    got, _, err = verb(capsys, *flags, f"--output={camvid / 'records'}")
    assert got == code and match in err and len(err.splitlines()) == 1 and not (camvid / "records").exists()
