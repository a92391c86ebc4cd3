import dataclasses
import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from experiments.presets import FREE_FIELDS, PRESETS, RunConfig
from persrm_jax.runs import RunFolder, provenance, read_config_file
from persrm_jax.sharding import MeshShape


@dataclass(frozen=True)
class Loss:
    clip_high: float = 0.2


@dataclass(frozen=True)
class Config:
    seed: int = 0
    names: tuple[str, ...] = ("a", "b")
    data: Path | None = None
    loss: Loss = field(default_factory=Loss)


def _finish(run: RunFolder, *stages: str) -> None:
    for stage in stages:
        with run.stage(stage):
            pass


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_config_goes_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", Config(data=Path("x")))
    assert run.stages == {} and not run.is_done("data")
    _finish(run, "data", "sft")
    before = _snapshot(run.path)
    again = RunFolder(tmp_path / "run", Config(data=Path("x")))
    assert list(again.stages) == ["data", "sft"]
    assert again.is_done("sft") and not again.is_done("rft")
    assert _snapshot(run.path) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(seed=1), "--seed 0, now 1"),
        (Config(loss=Loss(clip_high=0.28)), "--loss.clip-high 0.2, now 0.28"),
        (Config(names=("a",)), "--names ['a', 'b'], now ['a']"),
        (Config(data=Path("texts")), "--data None, now texts"),
    ],
)
def test_another_config_is_refused_by_its_flag(tmp_path: Path, config: Config, words: str) -> None:
    run = RunFolder(tmp_path / "run", Config())
    _finish(run, "data")
    before = _snapshot(run.path)
    with pytest.raises(ValueError) as error:
        RunFolder(run.path, config)
    assert words in str(error.value) and str(run.path) in str(error.value)
    assert _snapshot(run.path) == before


def test_free_fields_may_differ(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", Config())
    _finish(run, "data")
    RunFolder(run.path, Config(seed=5, loss=Loss(0.3)), free=("seed", "loss.clip_high"))
    with pytest.raises(ValueError, match="--loss.clip-high"):
        RunFolder(run.path, Config(seed=5, loss=Loss(0.3)), free=("seed",))


def test_a_run_may_change_its_mesh_but_not_its_seed(tmp_path: Path) -> None:
    cfg = PRESETS["tiny"]
    _finish(RunFolder(tmp_path / "run", cfg, free=FREE_FIELDS), "data")
    moved = replace(cfg, mesh=MeshShape(8, 1), out=tmp_path / "run")
    RunFolder(tmp_path / "run", moved, free=FREE_FIELDS)
    with pytest.raises(ValueError, match="--seed 0, now 3"):
        RunFolder(tmp_path / "run", replace(moved, seed=3), free=FREE_FIELDS)


def test_a_run_without_a_finished_stage_takes_a_new_config(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", Config())
    _finish(RunFolder(run.path, Config(seed=9)), "data")
    assert json.loads((run.path / "config.json").read_text())["seed"] == 9


def test_strangers_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no run"):
        RunFolder(tmp_path, Config())
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.txt", Config())
    assert _snapshot(tmp_path) == {"thesis.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty", Config())


@dataclass(frozen=True)
class NewerLoss(Loss):
    clip_low: float = 0.1


@dataclass(frozen=True)
class NewerConfig(Config):
    loss: NewerLoss = field(default_factory=NewerLoss)
    newer: int = 3


def test_a_field_that_is_newer_than_the_folder_has_its_default(tmp_path: Path) -> None:
    _finish(RunFolder(tmp_path / "run", Config()), "data")
    before = _snapshot(tmp_path)
    assert RunFolder(tmp_path / "run", NewerConfig()).is_done("data")
    assert _snapshot(tmp_path) == before
    with pytest.raises(ValueError, match="--newer 3, now 4"):
        RunFolder(tmp_path / "run", NewerConfig(newer=4))
    with pytest.raises(ValueError, match="--loss.clip-low 0.1, now 0.2"):
        RunFolder(tmp_path / "run", NewerConfig(loss=NewerLoss(clip_low=0.2)))
    with pytest.raises(
        ValueError, match="--loss.clip-low 0.1, now None"
    ):  # of fields that are gone
        _finish(RunFolder(tmp_path / "new", NewerConfig()), "data")
        RunFolder(tmp_path / "new", Config())


def test_a_stage_of_its_own_is_configured_until_it_begins(tmp_path: Path) -> None:
    _finish(RunFolder(tmp_path, Config()), "data")
    other = Config(loss=Loss(clip_high=0.3))
    with pytest.raises(ValueError, match="--loss.clip-high 0.2, now 0.3"):
        RunFolder(tmp_path, other)
    run = RunFolder(tmp_path, other, apart=("loss",))
    assert json.loads((tmp_path / "config.json").read_text())["loss"] == {"clip_high": 0.3}
    (tmp_path / "loss").mkdir()
    with pytest.raises(ValueError, match="--loss.clip-high 0.3, now 0.2"):
        RunFolder(tmp_path, Config(), apart=("loss",))
    (tmp_path / "loss").rmdir()
    _finish(run, "loss")
    with pytest.raises(ValueError, match="--loss.clip-high 0.3, now 0.2"):
        RunFolder(tmp_path, Config(), apart=("loss",))


def test_a_stage_is_reopened(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", Config())
    _finish(run, "data", "sft", "evaluation")
    run.reopen("evaluation")
    run.reopen("rft")
    assert list(RunFolder(tmp_path / "run", Config()).stages) == ["data", "sft"]


def test_a_stage_is_done_only_if_it_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", Config())
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), run.stage("data"):
            assert not run.is_done("data")
            raise error
        assert not run.is_done("data")
    _finish(run, "data", "sft")
    assert list(run.stages) == ["data", "sft"]
    assert all(0 <= seconds < 5 for seconds in run.stages.values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_its_file(tmp_path: Path, name: str) -> None:
    cfg = PRESETS[name]
    for config in (cfg, replace(cfg, out=tmp_path / "run", init=tmp_path, mesh=MeshShape(4, 2))):
        folder = tmp_path / ("a" if config is cfg else "b")
        _finish(RunFolder(folder, config), "data")
        assert read_config_file(folder / "config.json", RunConfig) == config
        assert cfg.preset == name


def test_a_config_of_another_version_is_refused(tmp_path: Path) -> None:
    _finish(RunFolder(tmp_path / "run", PRESETS["tiny"]), "data")
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    for changed in ({**saved, "lora": 8}, {k: v for k, v in saved.items() if k != "preset"}):
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="not a config of this version") as error:
            read_config_file(path, RunConfig)
        assert str(path) in str(error.value)


def test_provenance_says_how_to_get_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/rft.py", "tiny", "--seed", "3"])
    found = provenance()
    assert found["command"] == "rft.py tiny --seed 3"
    assert re.fullmatch(r"[0-9a-f]{40}|", found["commit"])
    assert isinstance(found["uncommitted_changes"], bool)
    assert found["packages"].keys() >= {"jax", "optax", "transformers"}
    assert all(re.match(r"\d+\.|not installed", v) for v in found["packages"].values())
    RunFolder(tmp_path / "run", Config())
    assert json.loads((tmp_path / "run" / "provenance.json").read_text()).keys() == found.keys()
    assert dataclasses.asdict(Config())["seed"] == 0
