from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from persrm_jax.training.progress import StepLine, Tracer

SCALARS = {"loss/total": 0.5, "time/tokens_per_s": 1234.0, "time/mfu": 0.25}


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with StepLine("sft", "loss/total", 3, 23) as line:
        for done in range(4, 24):
            line.begin()
            line.show(done, {**SCALARS, **line.end(done)})
        line.warn("step 22: something")
    said = capsys.readouterr().out.splitlines()
    assert [words.split()[1] for words in said] == ["10/23", "20/23", "23/23", "step"]
    for words in ("loss/total 0.500", "1,234 tokens/s", "MFU 25%", " GiB", "0:00:00 left"):
        assert words in said[0]
    assert said[-1] == "sft: step 22: something"


def test_the_time_left_is_the_median_step_for_all_that_remain() -> None:
    line = StepLine("rft", "reward/mean", 0, 10)
    for seconds in (9.0, 1.0, 1.0):
        line._begin -= seconds
        took = line.end(4)
        line.begin()
    assert took["time/left_s"] == pytest.approx(6 * 1.0, rel=0.2)
    assert took["time/memory_gib"] > 0.05


@pytest.mark.parametrize(
    ("first", "num_steps", "num_traced", "traced"),
    [(0, 6, 2, [2, 3]), (4, 6, 2, [4, 5]), (0, 2, 1, [1]), (3, 5, 9, [3, 4]), (0, 3, 0, [])],
)
def test_the_steps_asked_for_are_traced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    num_steps: int,
    num_traced: int,
    traced: list[int],
) -> None:
    recording: list[Path] = []
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace

    def begin(folder: Path) -> None:
        start(folder)
        recording.append(folder)

    def end() -> None:
        stop()
        recording.pop()

    monkeypatch.setattr(jax.profiler, "start_trace", begin)
    monkeypatch.setattr(jax.profiler, "stop_trace", end)
    tracer = Tracer(tmp_path, first, num_steps, num_traced)
    running = []
    for step in range(first, num_steps):
        with tracer.step(step):
            jax.block_until_ready(jnp.ones(8) * step)
            if recording:
                running.append(step)
    assert running == traced
    found = list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert len(found) == bool(traced) and all(f.stat().st_size > 1000 for f in found)
