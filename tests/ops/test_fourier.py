"""Amplitude transfer against the authors' numbers, a float64 numpy FFT, and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.errors import ConfigError
from segjax.ops import fourier

FORMS = ("fft", "banded")
transfer = jax.jit(fourier.amplitude_transfer, static_argnums=2, static_argnames=("variant", "form"))


def reference(source, target, b, variant):
    """float64 numpy, one image [H,W,C]: the window as a mask over the whole spectrum."""
    height, width = source.shape[:2]
    fs, ft = (np.fft.fft2(x.astype(np.float64), axes=(0, 1)) for x in (source, target))
    top = b if variant == "centred" else b - 1
    inside = [np.isin(np.arange(n) - n // 2, np.arange(-b, top + 1)) for n in (height, width)]
    mask = np.fft.ifftshift(inside[0])[:, None, None] & np.fft.ifftshift(inside[1])[None, :, None]
    amplitude = np.where(mask, np.abs(ft), np.abs(fs))
    return np.real(np.fft.ifft2(amplitude * np.exp(1j * np.angle(fs)), axes=(0, 1)))


def photos(shape, seed=0):
    """Smooth random fields with a white-noise part, in 0..255: spectra that fall off as a photograph's do."""
    rng = np.random.default_rng(seed)
    noise = rng.random(shape)
    smooth = np.real(np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) * np.exp(-np.arange(shape[2]) / 3)[None, None, :, None], axes=(1, 2)))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 200 + noise * 55).astype(np.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["01b_fda_synthetic_s0", "01b_fda_synthetic_s1"])
def test_authors_vectors(goldens, name, form):
    vectors = np.load(goldens / f"{name}.npz")
    source, target = (vectors[k].transpose(1, 2, 0)[None].astype(np.float32) for k in ("in_src", "in_trg"))
    betas = [float(beta) for beta in vectors["par_beta_f64"]]
    assert [fourier.band(*source.shape[1:3], beta) for beta in betas] == vectors["out_b"].tolist()
    for variant in ("centred", "corner"):
        how = dict(variant=variant, form=form)
        run = jax.jit(lambda *x, how=how: jnp.stack([fourier.amplitude_transfer(*x, beta, **how) for beta in betas]))
        out = np.asarray(run(source, target))
        np.testing.assert_allclose(out[:, 0], vectors[f"out_{variant}"].transpose(0, 2, 3, 1), atol=2e-3)


def test_photograph_vectors(real_data):
    folder = real_data.parent / "golden" / "vectors"
    for path in sorted(folder.glob("01_fda_s*.npz")):
        vectors = np.load(path)
        source, target = (vectors[k].transpose(1, 2, 0)[None].astype(np.float32) for k in ("in_src", "in_trg"))
        for i, beta in list(enumerate(vectors["par_beta_f64"]))[2::3]:
            for variant in ("centred", "corner"):
                out = np.asarray(transfer(source, target, float(beta), variant=variant))
                np.testing.assert_allclose(out[0], vectors[f"out_{variant}"][i].transpose(1, 2, 0), atol=1e-3)


@pytest.mark.parametrize("size,beta", [((16, 24), 0.0), ((15, 21), 0.3), ((16, 16), 0.5)])
def test_equals_numpy_up_to_the_nyquist_frequency(size, beta):
    source, target = photos((2, *size, 3)), photos((2, *size, 3), seed=1)
    b = fourier.band(*size, beta)
    ways = [dict(variant=variant, form=form) for variant in ("centred", "corner") for form in FORMS]
    run = jax.jit(lambda *x: [fourier.amplitude_transfer(*x, beta, **how) for how in ways])
    for how, out in zip(ways, run(source, target), strict=True):
        want = np.stack([reference(s, t, b, how["variant"]) for s, t in zip(source, target, strict=True)])
        np.testing.assert_allclose(out, want, atol=2e-3, err_msg=str(how))


@pytest.mark.parametrize("beta,centred,corner", [(0.01, 138.0, 36.0), (0.09, 173.300866, 155.650433), (0.25, 162.486016, 165.486016)])
def test_a_pixel_known_by_hand(beta, centred, corner):
    y, x = np.mgrid[:16, :24]
    source = np.stack([(7 * y + 3 * x) % 256, (5 * y * x) % 256, (11 * y + x**2) % 256], -1)[None].astype(np.float32)
    target = np.stack([(200 - 3 * y + x) % 256, (40 + 2 * x) % 256, (90 + 3 * y + 2 * x) % 256], -1)[None].astype(np.float32)
    run = jax.jit(lambda *x: [fourier.amplitude_transfer(*x, beta, variant=variant) for variant in ("centred", "corner")])
    for out, want in zip(jax.device_get(run(source, target)), (centred, corner), strict=True):
        assert abs(float(out[0, 3, 5, 0]) - want) < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_invariants(form):
    source, target = photos((1, 32, 48, 3)), photos((1, 32, 48, 3), seed=1)
    out = np.asarray(transfer(source, target, 0.1, form=form))
    np.testing.assert_allclose(out.mean((1, 2)), target.mean((1, 2)), atol=1e-3)
    np.testing.assert_allclose(transfer(source, source, 0.1, form=form), source, atol=1e-3)
    assert fourier.amplitude_transfer(source, target, 0.01, variant="corner", form=form) is source
    half = jax.eval_shape(lambda *x: transfer(*x, 0.1, form=form), source.astype(jnp.bfloat16), target.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flat", [0.0, 100.0])
def test_a_flat_channel_takes_the_target_at_phase_zero(form, flat):
    """Where |F_source| = 0 numpy's angle is 0, so the target's amplitudes arrive as cosines."""
    source, target = photos((1, 16, 32, 2)), photos((1, 16, 32, 2), seed=1)
    source[..., 1] = flat
    out = np.asarray(transfer(source, target, 0.15, form=form))
    np.testing.assert_allclose(out[0], reference(source[0], target[0], 2, "centred"), atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    source, target = photos((1, 12, 16, 2)) / 255, photos((1, 12, 16, 2), seed=1) / 255
    direction = photos((1, 12, 16, 2), seed=2) / 255

    def loss(s, t):
        return jnp.sum(jnp.sin(transfer(s, t, 0.2, form=form)))

    gradients, loss = jax.jit(jax.grad(loss, (0, 1))), jax.jit(loss)
    for i, gradient in enumerate(jax.device_get(gradients(source, target))):
        step = [np.zeros_like(source), np.zeros_like(source)]
        step[i] = 1e-2 * direction
        slope = (loss(source + step[0], target + step[1]) - loss(source - step[0], target - step[1])) / 2e-2
        np.testing.assert_allclose(float(np.sum(gradient * direction)), float(slope), rtol=2e-2, atol=2e-2)
    for s, t in ((0 * source, target), (source, 0 * target), (0 * source, 0 * target)):
        assert all(np.isfinite(g).all() for g in gradients(s, t))


def test_auto_follows_the_window():
    """Whatever auto picks equals both forms; the graph of a small window has no FFT and that of a large one has."""
    source, target = photos((1, 24, 40, 3)), photos((1, 24, 40, 3), seed=1)
    for beta, has_fft in ((0.05, False), (0.15, False), (0.45, True)):
        auto = jax.jit(functools.partial(fourier.amplitude_transfer, beta=beta))
        assert ("fft" in auto.lower(source, target).as_text()) == has_fft
        forms = [functools.partial(fourier.amplitude_transfer, beta=beta, form=form) for form in FORMS]
        chosen, *both = jax.jit(lambda s, t, auto=auto, forms=forms: [f(s, t) for f in (auto, *forms)])(source, target)
        for other in both:
            np.testing.assert_allclose(chosen, other, atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["centred", "corner"])
def test_set_of_betas(variant, form):
    """Each image equals the single-beta result of one beta of the set, and all of them are drawn."""
    betas = (0.0, 0.1, 0.3)
    source, target = photos((8, 16, 24, 3)), photos((8, 16, 24, 3), seed=1)
    draw = jax.jit(lambda s, t, key: fourier.amplitude_transfer_bands(s, t, betas, key, variant=variant, form=form))
    single = [np.asarray(transfer(source, target, beta, variant=variant)) for beta in betas]
    seen = set()
    for seed in range(3):
        out = np.asarray(draw(source, target, jax.random.key(seed)))
        errors = np.stack([np.abs(out - s).max((1, 2, 3)) for s in single])
        assert errors.min(0).max() < 2e-3
        seen.update(errors.argmin(0).tolist())
    assert seen == {0, 1, 2}


def test_sharded_batch_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    source, target = photos((8, 16, 24, 3)), photos((8, 16, 24, 3), seed=1)
    out = jax.jit(lambda s, t: transfer(s, t, 0.1))(jax.device_put(source, rows), jax.device_put(target, rows))
    assert out.sharding.is_equivalent_to(rows, 4)
    np.testing.assert_allclose(out, transfer(source, target, 0.1), atol=1e-3)


@pytest.mark.parametrize("beta", [0.01, 0.05])
def test_the_authors_own_picture(real_data, beta):
    folder = real_data / "samples" / "fda_demo"

    def load(name):
        picture = Image.open(folder / name).convert("RGB").resize((1024, 512), Image.Resampling.BICUBIC)
        return np.asarray(picture, np.float32)[None]

    out = jax.jit(lambda s, t: transfer(s, t, beta))(load("source.png"), load("target.png"))
    grey = np.floor(np.clip(np.asarray(out[0]), 0, 255) + 0.5).astype(int)
    official = np.asarray(Image.open(folder / f"official_beta{beta}.png").convert("RGB")).astype(int)
    assert (np.abs(grey - official) <= 1).mean() >= 0.999


def test_errors():
    image = np.zeros((1, 8, 8, 3), np.float32)
    for wrong in (
        lambda: fourier.amplitude_transfer(image, image[:, :4], 0.1),
        lambda: fourier.amplitude_transfer(image.astype(np.uint8), image, 0.1),
        lambda: fourier.amplitude_transfer(image, image, 0.6),
        lambda: fourier.amplitude_transfer(image, image, 0.1, variant="center"),
        lambda: fourier.amplitude_transfer(image, image, 0.1, form="dft"),
        lambda: fourier.amplitude_transfer_bands(image, image, (), jax.random.key(0)),
    ):
        with pytest.raises(ConfigError):
            wrong()
