import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import ConfigError
from segjax.runtime.optim import accumulated_grad, ema_update, make_optimizer, make_schedule


def rates(steps, **kwargs):
    rate = jax.jit(make_schedule(**kwargs))
    return np.array([rate(int(i)) for i in steps])


@pytest.mark.parametrize("seed", [0, 1])
def test_poly_equals_the_papers_code(goldens, seed):
    z = np.load(goldens / f"11_lr_poly_s{seed}.npz")
    (base, steps, power), at = z["par_f64"], z["in_iter"]
    poly = {"lr": base, "total_steps": int(steps), "power": power}
    for name in ("out_advent_f64", "out_dacs_f64"):
        np.testing.assert_allclose(rates(at, **poly), z[name], rtol=1e-5)
    np.testing.assert_allclose(rates(at, **poly), z["out_fda_f64"][:, 0], rtol=1e-5)
    np.testing.assert_allclose(rates(at, **poly | {"lr": 10 * base}), z["out_diga_f64"][:, 1], rtol=1e-5)
    for warm in (1, 1000):
        found = rates(at, warmup_steps=warm, warmup="delayed", **poly)
        np.testing.assert_allclose(found, z[f"out_diga_warm_intended{warm}_f64"], rtol=1e-5)
    released = rates(at, lr=base, schedule="constant", warmup_steps=int(steps), warmup="delayed")
    np.testing.assert_allclose(released, z["out_diga_warm_actual_f64"][:, 0], rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_warmup_and_teacher_equal_daformer(goldens, seed):
    z = np.load(goldens / f"06b_rcs_ema_lr_s{seed}.npz")
    base, power, minimum, warm, ratio, steps = z["par_lr_f64"]
    found = rates(z["in_lr_iter"], lr=base, power=power, min_lr=minimum, warmup_steps=int(warm), warmup_ratio=ratio, total_steps=int(steps))
    np.testing.assert_allclose(found, z["out_lr_f64"][:, 0], rtol=1e-5)
    teacher = jnp.asarray(z["in_ema_student0"])
    for step, student, expected in zip(z["in_ema_iter"], z["in_ema_student"], z["out_ema_teacher"], strict=True):
        teacher = ema_update(teacher, jnp.asarray(student), step, float(z["par_alpha"]))
        np.testing.assert_allclose(teacher, expected, atol=1e-5)


def test_teacher_equals_diga(goldens):
    z = np.load(goldens / "05d_diga_ema_s0.npz")
    teacher = {"w": jnp.asarray(z["in_ema_teacher0"]), "count": jnp.int32(0)}
    for step, student, expected in zip(z["in_ema_iter"], z["in_ema_student"], z["out_ema_teacher"], strict=True):
        teacher = ema_update(teacher, {"w": jnp.asarray(student), "count": jnp.int32(step)}, int(step), 0.999)
        np.testing.assert_allclose(teacher["w"], expected, atol=2e-5)
        assert int(teacher["count"]) == step


def test_cosine_constant_and_the_end():
    np.testing.assert_allclose(rates([0, 5, 10, 99], lr=2.0, schedule="cosine", total_steps=10, min_lr=1.0), [2, 1.5, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(rates([0, 99], lr=2.0, schedule="constant"), [2, 2])
    np.testing.assert_allclose(rates([10, 11, 99], lr=2.0, total_steps=10), 0)


@pytest.mark.parametrize(
    "name, torch_name, ours, theirs",
    [
        ("sgd", "SGD", {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1}),
        ("sgd", "SGD", {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
        ("sgd", "SGD", {"momentum": 0.0}, {}),
        ("adam", "Adam", {"betas": (0.5, 0.99), "weight_decay": 0.1}, {"betas": (0.5, 0.99), "weight_decay": 0.1}),
        ("adamw", "AdamW", {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ],
)
def test_updates_equal_torch(name, torch_name, ours, theirs):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {k: rng.normal(size=(4, 3)).astype(np.float32) for k in ("backbone", "head")}
    weights = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    groups = [{"params": [weights["backbone"]], "lr": 0.01}, {"params": [weights["head"]], "lr": 0.1, "weight_decay": 0.0}]
    peer = getattr(torch.optim, torch_name)(groups, lr=0.01, **theirs)
    no_decay = ("head",) if "weight_decay" in ours else ()
    tx = make_optimizer(name=name, lr=0.01, schedule="constant", multipliers=(("params/head", 10.0),), no_decay=no_decay, **ours)
    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(5):
        grads = {k: rng.normal(size=(4, 3)).astype(np.float32) for k in start}
        for k, w in weights.items():
            w.grad = torch.tensor(grads[k])
        peer.step()
        changes, state = update(grads, state, params)
        params = optax.apply_updates(params, changes)
    for k in start:
        np.testing.assert_allclose(params[k], weights[k].detach().numpy(), rtol=1e-5, atol=1e-5)


def test_clip_is_global_and_comes_first():
    tx = make_optimizer(lr=1.0, schedule="constant", momentum=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    changes, _ = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, tx.init(params), params)
    np.testing.assert_allclose([changes["a"][0], changes["b"][0]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"name": "sgdd"}, "sgdd"),
        ({"schedule": "step"}, "step"),
        ({"total_steps": 0}, "number of steps"),
        ({"warmup": "x"}, "delayed"),
        ({"multipliers": (("heda", 10.0),)}, "'heda' matches no parameter.*params/head"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(**({"lr": 1.0, "total_steps": 5} | wrong)).init({"head": jnp.zeros(1)})


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_accumulated_gradient_is_the_full_batch(steps):
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    label = rng.integers(0, 3, size=(8, 6)).astype(np.uint8)
    label[0], label[3, :5] = 255, 255  # ignored pixels fall unevenly over the microbatches
    batch = {"x": jnp.asarray(rng.normal(size=(8, 6, 5)), jnp.float32), "label": jnp.asarray(label)}

    def sums(params, part, carry):
        log_probs = jax.nn.log_softmax(part["x"] @ params["w"])
        mask = part["label"] != 255
        picked = jnp.take_along_axis(log_probs, jnp.where(mask, part["label"], 0)[..., None], -1)[..., 0]
        entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
        terms = {"ce": (-(picked * mask).sum(), mask.sum()), "entropy": (0.1 * entropy.sum(), entropy.size), "none": (0.0, 0.0)}
        return terms, carry + part["x"].sum()

    def full(params):
        terms, _ = sums(params, batch, 0.0)
        return terms["ce"][0] / terms["ce"][1] + terms["entropy"][0] / terms["entropy"][1]

    loss, expected = jax.value_and_grad(full)(params)
    grads, means, carry = jax.jit(lambda p, b: accumulated_grad(sums, p, b, steps, carry=jnp.zeros(())))(params, batch)
    np.testing.assert_allclose(grads["w"], expected["w"], atol=1e-6)
    np.testing.assert_allclose(means["ce"] + means["entropy"], loss, rtol=1e-6)
    assert float(means["none"]) == 0
    np.testing.assert_allclose(carry, batch["x"].sum(), rtol=1e-4)


def test_accumulate_must_divide():
    with pytest.raises(ConfigError, match="accumulate=3"):
        accumulated_grad(lambda p, b, c: ({}, c), {}, {"x": jnp.zeros((8, 1))}, 3)
