import jax
import jax.numpy as jnp

from segjax.runtime.profile import Profile


def walk(profile: Profile, steps: range) -> list[int]:
    """The steps that ran while the trace was on."""
    step, state, seen = jax.jit(lambda x: x + 1), jnp.zeros(4), []
    with profile:
        for number in steps:
            profile.before(number, state)
            if profile.active:
                seen.append(number)
            state = step(state)
            profile.after(number + 1, state)
    assert not profile.active
    return seen


def test_the_named_steps_alone_are_traced(tmp_path, capsys):
    assert walk(Profile((2, 4), tmp_path / "profile"), range(6)) == [2, 3]
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 0
    assert str(tmp_path / "profile") in capsys.readouterr().out


def test_a_run_that_ends_earlier_writes_what_it_has(tmp_path):
    assert walk(Profile((4, 9), tmp_path), range(5)) == [4] and list(tmp_path.rglob("*.xplane.pb"))
    assert walk(Profile((1, 3), tmp_path / "late"), range(5, 7)) == [] and not (tmp_path / "late").exists()
    assert walk(Profile(None, tmp_path / "none"), range(2)) == []
