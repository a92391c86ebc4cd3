"""Bad input ends with one sentence and exit code 2, and leaves no trace."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import experiments.ablate
import experiments.convert
import experiments.evaluate
import experiments.report
import experiments.rft
import experiments.sft
import experiments.synthesize
from experiments.presets import PRESETS
from persrm_jax import cli
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.runs import RunFolder
from persrm_jax.tokenizer import byte_tokenizer

Refused = Callable[..., str]
TRAINING = [experiments.synthesize, experiments.sft, experiments.rft]
IDS = [module.__name__ for module in TRAINING]
SMALL = ["--pairs.num-train", "20", "--pairs.num-test", "5", "--personas.num-personas", "8"]


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Runs a command that must end with one sentence, which it returns; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def run(module: ModuleType, *args: str) -> str:
        before = _files(tmp_path), sorted(tmp_path.iterdir())
        monkeypatch.setattr(sys, "argv", ["prog", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.run_main(module.main)
        sentence = capsys.readouterr().err
        assert stopped.value.code == 2
        assert sentence.startswith("error: ") and sentence.count("\n") == 1, sentence
        assert "Traceback" not in sentence
        assert (_files(tmp_path), sorted(tmp_path.iterdir())) == before, "something was written"
        return sentence.removeprefix("error: ").strip()

    return run


def _texts(path: Path, num_people: int = 6, num_texts: int = 4) -> list[dict[str, str]]:
    documents = make_personas(
        PersonaConfig(num_personas=num_people, texts=num_texts, clauses=10), 0
    )
    rows = [{"author": d.author, "text": d.text} for d in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
def test_a_missing_file(refused: Refused, module: ModuleType) -> None:
    sentence = refused(module, "--data", "none.jsonl", "--out", "run")
    assert "none.jsonl" in sentence and "no such file" in sentence


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
def test_an_empty_file(refused: Refused, tmp_path: Path, module: ModuleType) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "empty.jsonl" in refused(module, "--data", "empty.jsonl", "--out", "run")


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
def test_a_malformed_line(refused: Refused, tmp_path: Path, module: ModuleType) -> None:
    _texts(tmp_path / "texts.jsonl")
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    lines[4] = lines[4][:-5]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    sentence = refused(module, "--data", "texts.jsonl", "--out", "run")
    assert sentence.startswith("texts.jsonl, line 5: ")


def test_too_few_authors(refused: Refused, tmp_path: Path) -> None:
    _texts(tmp_path / "texts.jsonl", num_people=3)
    sentence = refused(experiments.rft, "--data", "texts.jsonl", "--out", "run")
    assert "3 authors" in sentence and "at least 6" in sentence


def test_a_file_name_with_brackets(refused: Refused) -> None:
    assert "[/b].jsonl" in refused(experiments.rft, "--data", "[/b].jsonl", "--out", "run")


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["smollm"], "unknown preset 'smollm' (did you mean smollm2?)"),
        (["qwen2.5-7B"], "did you mean qwen2.5-7b?"),
        (["--sft.step", "3"], "unknown flag --sft.step (did you mean --sft.steps?)"),
        (["--loss.cliphigh", "0.3"], "did you mean --loss.clip-high?"),
        (["tiny", "smollm2"], "unexpected argument 'smollm2'"),
        (["--sft.steps", "many"], "--sft.steps"),
        (["--rft.group-size", "1"], "--rft.group-size 1"),
        (["--loss.clip-low", "1.5"], "--loss.clip-low 1.5"),
        (["--pairs.num-exemplars", "0"], "--pairs.num-exemplars 0"),
    ],
)
def test_a_command_that_is_misspelt(
    refused: Refused, module: ModuleType, args: list[str], words: str
) -> None:
    assert words in refused(module, *args, "--out", "run")


@pytest.mark.parametrize("module", TRAINING[1:], ids=IDS[1:])
def test_groups_of_traces_that_share_nothing(refused: Refused, module: ModuleType) -> None:
    words = refused(module, "--sft.group-size", "5", "--out", "run")
    assert "--sft.group-size 5: at most 1 traces" in words
    assert "with --pairs.exemplars-shared-by 1" in words
    words = refused(module, "--bt.group-size", "2", "--out", "run")
    assert "--bt.group-size 2: at most 1 pairs" in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--negatives", "mimic,mimick"], "mimick"),
        (["--negatives", "mimic"], "--writer rules: nobody writes 'mimic'; name a model"),
        (["--writer", "minor=gpt"], "'gpt' is none of rules, local, openai"),
        (["--writer", "major=rules"], "'major' is none of mimic, minor, random"),
        (["--negatives", "minor", "--writer", "local"], "a model from scratch cannot write yet"),
        (["--negatives", "minor", "--writer", "openai"], "--openai.model"),
        (["--data", "somewhere"], "--data somewhere: no such file or folder; give `personas`"),
        (["--written.tries", "0"], "--written.tries 0"),
        (["--written.verify.max-overlap", "2"], "--written.verify.max-overlap 2"),
        (["--pairs.topic-pool", "0"], "--pairs.topic-pool 0: must be at least 1"),
    ],
)
def test_data_that_cannot_be_made(refused: Refused, args: list[str], words: str) -> None:
    assert words in refused(experiments.synthesize, *args, "--out", "run")


def test_evaluate_offers_the_nearest_flag(refused: Refused) -> None:
    sentence = refused(experiments.evaluate, "--run", "x", "--max-pair", "3")
    assert "did you mean --max-pairs?" in sentence
    assert "--run" in refused(experiments.evaluate)


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
def test_exemplars_longer_than_the_prompt_may_be(refused: Refused, module: ModuleType) -> None:
    sentence = refused(module, *SMALL, "--prompt.max-tokens", "16", "--out", "run")
    assert "--prompt.max-tokens is 16" in sentence and "--pairs.num-exemplars" in sentence


@pytest.mark.parametrize("module", TRAINING[1:], ids=IDS[1:])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt.max-tokens", "100000"], "exceed the model's context of"),
        (["--rft.sampling.max-new-tokens", "100000"], "exceed the model's context of"),
        (["--mesh", "8x1", "--sft.batch-size", "12"], "--sft.batch-size is 12"),
        (["--mesh", "8x1", "--rft.prompts", "4"], "the first side can be 1, 2, 4"),
        (["--mesh", "3x1", "--eval.batch-size", "64"], "which 3 does not divide"),
        (["--mesh", "1x3"], "the second side can be 1, 2, 4"),
        (["--mesh", "1000x1"], "--mesh 1000x1 needs 1000 devices"),
        (["--mesh", "8"], "--mesh 8: expected DATAxMODEL"),
        (["--mesh", "0x1"], "--mesh 0x1"),
        (["--sft.accumulate", "3"], "--sft.accumulate 3: a step's 16 rows on --mesh 1x1 can be"),
        (["--mesh", "8x1", "--sft.accumulate", "4"], "can be taken in 1, 2 parts"),
        (["--rft.accumulate", "0"], "--rft.accumulate 0: a step's 16 rows"),
        (["--sft.patience", "3", "--sft.eval-every", "0"], "--sft.patience 3: needs --sft.eval"),
        (["--init", "nowhere"], "--init nowhere: holds no model"),
        (["--model", "./nowhere"], "model ./nowhere: no such folder"),
        (["--model", "nowhere"], "model nowhere: no such folder"),
    ],
)
def test_what_does_not_fit(
    refused: Refused, module: ModuleType, args: list[str], words: str
) -> None:
    assert words in refused(module, *SMALL, *args, "--out", "run")


def test_an_init_or_model_that_holds_no_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("x")
    assert "holds no model" in refused(experiments.rft, "--init", "folder", "--out", "run")
    assert "config.json" in refused(experiments.rft, "--model", "folder", "--out", "run")


@pytest.mark.parametrize("module", TRAINING, ids=IDS)
def test_an_out_that_is_taken(refused: Refused, tmp_path: Path, module: ModuleType) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    assert "is a file" in refused(module, *SMALL, "--out", "file")
    assert "holds files but no run" in refused(module, *SMALL, "--out", "folder")


def test_a_finished_stage_under_other_settings(refused: Refused, tmp_path: Path) -> None:
    experiments.synthesize.main([*SMALL, "--out", str(tmp_path / "run")])
    sentence = refused(experiments.rft, *SMALL, "--seed", "4", "--out", "run")
    assert "--seed 0, now 4" in sentence
    refused(experiments.rft, *SMALL, "--data", "none.jsonl", "--out", "run")


def test_evaluating_what_is_no_run(refused: Refused, tmp_path: Path) -> None:
    assert "holds no run" in refused(experiments.evaluate, "--run", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refused(experiments.evaluate, "--run", "empty", "--json", "OUT.json")
    experiments.synthesize.main([*SMALL, "--out", str(tmp_path / "run")])
    sentence = refused(experiments.evaluate, "--run", "run", "--json", "OUT.json")
    assert "no stage of training has finished" in sentence


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["variants"], "unknown sweep 'variants'; sweeps: variant, "),
        (["kl", "--preset", "small"], "--preset small: expected one of tiny, "),
        (["kl", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["kl", "--", "--seed=3"], "--seed=3: the sweep sets it"),
        (["kl", "--", "--rft.stepz", "3"], "unknown flag --rft.stepz (did you mean --rft.steps?)"),
    ],
)
def test_sweeping_what_is_no_sweep(refused: Refused, args: list[str], sentence: str) -> None:
    assert refused(experiments.ablate, *args).startswith(sentence)


def test_reporting_what_is_no_run(refused: Refused) -> None:
    assert "has not been evaluated" in refused(experiments.report, "nowhere", "--out", "out")


def test_convert(refused: Refused, tmp_path: Path) -> None:
    goldens = Path(__file__).parents[1] / "data" / "hf_goldens" / "qwen2"
    for name in ("good", "cut", "other"):
        shutil.copytree(goldens, tmp_path / name)
        byte_tokenizer().save(tmp_path / name)  # 259 tokens, of which the model knows 96
    convert = experiments.convert
    said = refused(convert, "--from", "good", "--to", "out")
    assert "its tokenizer has 259 tokens and its model 96" in said

    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "not a complete safetensors file" in refused(convert, "--from", "cut", "--to", "out")

    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    said = refused(convert, "--from", "other", "--to", "out")
    assert "embed_tokens.weight has shape (96, 32), expected (512, 32)" in said
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "phi"}))
    assert "model_type 'phi' is not one of" in refused(convert, "--from", "other", "--to", "out")

    (tmp_path / "cut" / "model.safetensors").rename(tmp_path / "cut" / "weights")
    (tmp_path / "cut" / "model.safetensors.index.json").write_text("{}")
    assert "not an index" in refused(convert, "--from", "cut", "--to", "out")

    assert "--to good: exists" in refused(convert, "--from", "other", "--to", "good")
    assert "no such folder" in refused(convert, "--from", "nowhere", "--to", "out")
    assert "expected float32, bfloat16" in refused(
        convert, "--from", "good", "--to", "out", "--dtype", "int8"
    )
    assert "did you mean --from" in refused(convert, "--form", "good", "--to", "out")


def test_converting_a_run_without_a_model(refused: Refused, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", PRESETS["tiny"])
    said = refused(experiments.convert, "--from", "run", "--to", "out")
    assert said == "--from run: this run has not saved a model yet"
