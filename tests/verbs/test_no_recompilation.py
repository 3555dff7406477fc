"""A run compiles what it needs once: nothing more over 200 steps with evaluations and saves among them."""

import json

import jax

from segjax import cli
from segjax.runtime import meter

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_200_steps_with_evaluations_and_saves_compile_nothing_after_the_first(tiny_config, tmp_path, monkeypatch, capsys):
    compiled, seen, real = [], [], meter.Meter.evaluate

    def listen(event: str, seconds: float, **_):
        if event == COMPILED:
            compiled.append(seconds)

    def evaluate(self, step, state, scored):
        real(self, step, state, scored)
        seen.append((step, len(compiled)))

    monkeypatch.setattr(meter.Meter, "evaluate", evaluate)
    jax.monitoring.register_event_duration_secs_listener(listen)
    changes = {"steps": 200, "checkpoint_every": 20, "evaluate_every": 40, "log_every": 10}
    argv = ["train", f"--config={tiny_config}", "--stage=source_only", f"--workdir={tmp_path}"]
    try:
        assert cli.main([*argv, *(f"--config.{name}={value}" for name, value in changes.items())]) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [step for step, _ in seen] == [40, 80, 120, 160, 200]
    assert seen[0][1] > 0 and {count for _, count in seen} == {seen[0][1]}, f"programs compiled up to each evaluation: {seen}"
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    waits = [(row["host_idle"], row["data_wait"]) for row in rows if "host_idle" in row]
    assert len(waits) == 20 and all(0 <= share <= 1 for row in waits for share in row)
    assert "host idle" in capsys.readouterr().out
