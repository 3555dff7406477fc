"""`segjax stylize`: the authors' own pictures, and everything around the transfer."""

import argparse

import numpy as np
import pytest
from PIL import Image
from processes import in_two

from segjax.errors import ConfigError, DataError
from segjax.verbs import stylize


def verb(**flags) -> int:
    parser = argparse.ArgumentParser()
    stylize.add_arguments(parser)
    words = [f"--{k.replace('_', '-')}" if v is True else f"--{k.replace('_', '-')}={v}" for k, v in flags.items()]
    return stylize.run(parser.parse_args(words))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def picture(path, seed: int, size=(32, 24), mean: int = 128) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = np.clip(mean + rng.normal(scale=25, size=(size[1], size[0], 3)), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(path)
    return image


def authors(source: np.ndarray, target: np.ndarray, beta: float) -> np.ndarray:
    """numpy, centred window, as FDA_source_to_target_np computes it; uint8, rounded half up."""
    s, t = (np.fft.fftshift(np.fft.fft2(x.astype(float), axes=(0, 1)), axes=(0, 1)) for x in (source, target))
    h, w = source.shape[:2]
    b = int(np.floor(min(h, w) * beta))
    rows, columns = slice(h // 2 - b, h // 2 + b + 1), slice(w // 2 - b, w // 2 + b + 1)
    amplitude = np.abs(s)
    amplitude[rows, columns] = np.abs(t)[rows, columns]
    mixed = np.fft.ifftshift(amplitude * np.exp(1j * np.angle(s)), axes=(0, 1))
    return np.floor(np.clip(np.fft.ifft2(mixed, axes=(0, 1)).real, 0, 255) + 0.5).astype(int)


def test_the_authors_own_pictures(real_data, tmp_path):
    demo = real_data / "samples" / "fda_demo"
    assert verb(source=demo / "source.png", target=demo / "target.png", output=tmp_path, beta="0.01,0.05", size="1024x512") == 0
    for beta in ("0.01", "0.05"):
        difference = np.abs(pixels(tmp_path / f"beta{beta}" / "source.png") - pixels(demo / f"official_beta{beta}.png"))
        assert (difference <= 1).mean() >= 0.999, (beta, difference.max())


def test_pairs_in_turn_with_sizes_of_their_own(tmp_path):
    names = {"a": (32, 24), "city/b": (32, 24), "c": (40, 24)}
    sources = {name: picture(tmp_path / "in" / f"{name}.png", i, size) for i, (name, size) in enumerate(names.items())}
    looks = [picture(tmp_path / "look" / f"{i}.png", 10 + i, mean=90 + 60 * i) for i in range(2)]
    assert verb(source=tmp_path / "in", target=tmp_path / "look", output=tmp_path / "out", beta="0.1", batch_size=2) == 0
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["a.png", "c.png", "city/b.png"]
    for i, name in enumerate(sorted(names, key=lambda n: f"{n}.png")):
        look = np.asarray(Image.fromarray(looks[i % 2]).resize(names[name], Image.Resampling.BICUBIC))
        difference = np.abs(pixels(tmp_path / "out" / f"{name}.png") - authors(sources[name], look, 0.1))
        assert difference.max() <= 1 and (difference == 0).mean() > 0.99, name


def test_bands_draws_one_beta_an_image(tmp_path):
    sources = [picture(tmp_path / "in" / f"{i}.png", i) for i in range(6)]
    look = picture(tmp_path / "look.png", 9, mean=60)
    flags = dict(source=tmp_path / "in", target=tmp_path / "look.png", beta="0.05,0.2", bands=True, batch_size=4)
    verb(**flags, output=tmp_path / "out")
    drawn = set()
    for i, source in enumerate(sources):
        result = pixels(tmp_path / "out" / f"{i}.png")
        close = [beta for beta in (0.05, 0.2) if np.abs(result - authors(source, look, beta)).max() <= 1]
        assert len(close) == 1
        drawn |= set(close)
    assert drawn == {0.05, 0.2}
    verb(**flags, output=tmp_path / "again")
    assert all((tmp_path / "out" / f"{i}.png").read_bytes() == (tmp_path / "again" / f"{i}.png").read_bytes() for i in range(6))


def test_two_processes_write_what_one_does(tmp_path):
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png", i)
        picture(tmp_path / "look" / f"{i}.png", 9 + i, mean=60)
    flags = dict(source=tmp_path / "in", target=tmp_path / "look", beta="0.05,0.2", order="random", seed=3, batch_size=2)
    one, two = tmp_path / "one", tmp_path / "two"
    verb(**flags, bands=True, output=one)
    argv = [f"--{key.replace('_', '-')}={value}" for key, value in flags.items()]
    texts = in_two(["stylize", *argv, "--bands", f"--output={two}"], tmp_path / "cache")
    assert sorted(path.name for path in two.iterdir()) == ["0.png", "1.png", "2.png"]
    for i in range(3):
        difference = np.abs(pixels(one / f"{i}.png") - pixels(two / f"{i}.png"))
        assert difference.max() <= 1 and (difference == 0).mean() > 0.999, i
    assert f"3 images in {two}" in texts[0] and "images in" not in texts[1]


def test_a_process_without_an_image_writes_nothing(tmp_path):
    stylize.stylize([], [], [tmp_path], size=None, batch_size=0, seed=0)
    assert not list(tmp_path.iterdir())


def test_the_corner_variant_differs(tmp_path):
    picture(tmp_path / "s.png", 0)
    picture(tmp_path / "t.png", 1, mean=60)
    for variant in ("centred", "corner"):
        verb(source=tmp_path / "s.png", target=tmp_path / "t.png", output=tmp_path / variant, beta=0.1, variant=variant)
    a, b = pixels(tmp_path / "centred" / "s.png"), pixels(tmp_path / "corner" / "s.png")
    assert abs(a.mean() - b.mean()) < 0.5  # both take the target's mean
    assert np.abs(a - b).max() > 1


def test_random_pairs_depend_on_seed_and_place_alone():
    sources = {str(i): i for i in range(40)}
    targets = {str(i): i for i in range(5)}
    first = [job.target for job in stylize.plan(sources, targets, order="random", seed=3)]
    assert first == [job.target for job in stylize.plan(sources, targets, order="random", seed=3)]
    assert first[:10] == [job.target for job in stylize.plan(dict(list(sources.items())[:10]), targets, order="random", seed=3)]
    assert first != [job.target for job in stylize.plan(sources, targets, order="random", seed=4)] and set(first) == set(range(5))


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"beta": "0.7"}, ConfigError, "0..0.5"),
        ({"beta": "big"}, ConfigError, "expected numbers"),
        ({"size": "512"}, ConfigError, "WIDTHxHEIGHT"),
        ({"size": "0x5"}, ConfigError, "WIDTHxHEIGHT"),
        ({"batch_size": 0}, ConfigError, "1 or more"),
        ({"source": "nowhere"}, DataError, "--source=nowhere"),
        ({"target": "{tmp}/empty"}, DataError, "no image in this folder"),
        ({"source": "{tmp}/twins"}, DataError, "would be written to one file"),
        ({"source": "{tmp}/half.png"}, DataError, "half.png"),
        ({"output": "{tmp}/s.png"}, ConfigError, "cannot be made"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, flags, error, words):
    picture(tmp_path / "s.png", 0)
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "twins" / "x.png", 1)
    picture(tmp_path / "twins" / "x.bmp", 1)
    whole = (tmp_path / "s.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    given = {"source": tmp_path / "s.png", "target": tmp_path / "s.png", "output": tmp_path / "out"} | flags
    with pytest.raises(error) as caught:
        verb(**{k: str(v).replace("{tmp}", str(tmp_path)) for k, v in given.items()})
    assert words in str(caught.value) and "\n" not in str(caught.value)
