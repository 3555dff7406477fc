"""Plain progress lines where there is no terminal."""

from segjax.verbs import progress


def test_lines_are_few_and_end_with_the_total(capsys, monkeypatch):
    clock = iter(float(t) for t in range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("stylize", 10) as advance:
        for _ in range(10):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "stylize: 3/10, 0.2/s, 28 s left",
        "stylize: 6/10, 0.2/s, 16 s left",
        "stylize: 9/10, 0.2/s, 4 s left",
        "stylize: 10/10, 0.2/s in 40.0 s",
    ]
