import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pytest

from experiments.presets import DEFAULT, PRESETS, RunConfig, Variant, parse_run
from persrm_jax import cli
from persrm_jax.rl import advantages, losses
from persrm_jax.sharding import MeshShape


@dataclass(frozen=True)
class Inner:
    """Inner."""

    clip_high: float = 0.2
    """Upper."""


@dataclass(frozen=True)
class Config:
    """Outer."""

    name: str
    """Name."""
    steps: int = 3
    """Steps."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Mesh."""
    loss: Inner = field(default_factory=Inner)
    """Loss."""


OURS = {"small": Config("small"), "large": Config("large", steps=9, loss=Inner(0.3))}


def _parse(*args: str) -> Config:
    return cli.parse_preset(OURS, "small", "prog", args)


def test_the_first_word_picks_the_preset() -> None:
    assert _parse() == OURS["small"]
    assert _parse("large") == OURS["large"]
    assert _parse("--steps", "4") == Config("small", steps=4)
    assert _parse("large", "--loss.clip-high", "0.28") == Config("large", 9, loss=Inner(0.28))
    assert _parse("large", "--loss.clip_high=0.1").loss == Inner(0.1)


@pytest.mark.parametrize("name", get_args(Variant))
def test_a_variant_sets_what_flags_then_override(name: str) -> None:
    cfg = parse_run(PRESETS, "prog", ["tiny", "--variant", name, "--loss.clip-low", "0.11"])
    assert cfg.variant == name and cfg.preset == "tiny"
    assert cfg.loss == replace(losses.VARIANTS[name], clip_low=0.11)
    assert cfg.rft.advantage == advantages.VARIANTS[name]
    assert cfg.rft.prompts == PRESETS["tiny"].rft.prompts
    assert (cfg.rft.max_rollouts > 1) == cfg.rft.drop_flat == (name == "dapo")
    assert cfg.rft.reward.margin == PRESETS["tiny"].rft.reward.margin
    assert parse_run(PRESETS, "prog", [f"--variant={name}"]).variant == name


def test_an_unknown_variant_is_refused_by_name() -> None:
    for words in (["--variant", "ppo"], ["--variant=ppo"], ["--variant"]):
        with pytest.raises(ValueError, match="--variant .*: must be one of grpo, dr_grpo, dapo"):
            parse_run(PRESETS, "prog", words)


def test_every_preset_of_the_experiments_parses() -> None:
    for name, preset in PRESETS.items():
        assert cli.parse_preset(PRESETS, DEFAULT, "prog", [name]) == preset
    cfg = cli.parse_preset(
        PRESETS, DEFAULT, "prog", ["--mesh", "8x1", "--loss.clip-high", "0.28", "--data", "x.jsonl"]
    )
    assert (cfg.preset, cfg.mesh, cfg.loss.clip_high, cfg.data) == (
        "tiny", MeshShape(8, 1), 0.28, "x.jsonl",
    )  # fmt: skip
    assert isinstance(cfg, RunConfig)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("8x1", MeshShape(8, 1)), ("2X4", MeshShape(2, 4)), ("1x1", MeshShape(1, 1))],
)
def test_a_mesh_is_data_by_model(text: str, shape: MeshShape) -> None:
    assert _parse("--mesh", text).mesh == shape
    assert str(shape) == text.lower()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["smal"], "unknown preset 'smal' (did you mean small?); presets: small, large"),
        (["zzz"], "unknown preset 'zzz'; presets: small, large"),
        (["--step", "3"], "unknown flag --step (did you mean --steps?)"),
        (["--loss.cliphigh", "3"], "unknown flag --loss.cliphigh (did you mean --loss.clip-high?)"),
        (["large", "--clip_high=3"], "unknown flag --clip_high (did you mean --loss.clip-high?)"),
        (["small", "large"], "unexpected argument 'large': a preset goes first"),
    ],
)
def test_the_nearest_match_is_offered(args: list[str], words: str) -> None:
    with pytest.raises(ValueError) as error:
        _parse(*args)
    assert str(error.value).startswith(words)


def _run(main, args: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:  # noqa: ANN001
    monkeypatch.setattr(sys, "argv", ["prog", *args])
    with pytest.raises(SystemExit) as stopped:
        cli.run_main(main)
    return stopped.value.code


@pytest.mark.parametrize("value", ["8", "8x", "x1", "8x1x1", "axb", "0x1", "8x0", "-1x1", "8 x 1"])
def test_a_bad_mesh_is_one_sentence(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(lambda args: print(_parse(*args)), [f"--mesh={value}"], monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --mesh {value}: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("args", [["--steps", "many"], ["--steps"], ["--loss.clip-high", "x"]])
def test_a_bad_value_is_one_sentence(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(lambda args: print(_parse(*args)), args, monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and args[0] in captured.err
    assert captured.err.count("\n") == 1


def test_help_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(lambda args: print(_parse(*args)), ["--help"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "--loss.clip-high" in shown and "Upper." in shown and "DATAxMODEL" in shown


@pytest.mark.parametrize(
    "message",
    ["plain", "--out [x]: [bold]is a file[/bold]", "'[/b]' and [[A]]", "x" * 300, "50 % of a\\[b"],
)
def test_bad_input_ends_with_its_sentence_and_2(
    message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(args: Sequence[str]) -> None:
        raise ValueError(message)

    assert _run(main, [], monkeypatch) == cli.BAD_INPUT == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n" and captured.out == ""


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(args: Sequence[str]) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(AssertionError, match="ours"):
        cli.run_main(main)


def _do_not_fit() -> None:
    np.zeros(3)[:] = np.zeros(4)


@pytest.mark.parametrize(
    "fault", [_do_not_fit, lambda: list(zip([1], [], strict=True)), lambda: int("many")]
)
def test_a_value_error_that_nobody_raised_keeps_its_traceback(
    fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["prog"])
    with pytest.raises(ValueError):
        cli.run_main(lambda args: fault())


def test_exit_codes_of_a_process() -> None:
    program = """
import os, signal
# A shell's background jobs, this test's process perhaps, are born deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from persrm_jax import cli
def main(args):
    if args == ["bad"]:
        raise ValueError("no such thing")
    if args == ["stop"]:
        os.kill(os.getpid(), signal.SIGINT)
cli.run_main(main)
"""
    codes = {}
    for word in ("good", "bad", "stop"):
        done = subprocess.run(
            [sys.executable, "-c", program, word], capture_output=True, text=True, timeout=120
        )
        codes[word] = (done.returncode, done.stderr)
    assert codes["good"] == (0, "")
    assert codes["bad"] == (2, "error: no such thing\n")
    assert codes["stop"][0] == 130
    assert codes["stop"][1] == "interrupted: the same command goes on from here\n"
