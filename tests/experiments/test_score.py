"""The command that scores a file of candidates, with a judge whose scores are known."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from planted_judge import planted_run, planted_score

import experiments.score
from experiments.score import ScoredCandidate, read_exemplars
from persrm_jax.jsonl import read_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a folder of exemplars, and candidates."""
    folder = tmp_path_factory.mktemp("use")
    planted_run(folder / "run")
    (folder / "letters").mkdir()
    (folder / "letters" / "2.md").write_text("xx")
    (folder / "letters" / "1.txt").write_text("abc")
    (folder / "letters" / "notes.pdf").write_bytes(b"\xff")
    rows = [
        {"id": "plain", "text": "abc def"},
        {"id": 7, "text": "xxxx abc", "extra": "ignored"},
        {"id": "other prompt", "text": "xxx abc", "prompt": "say it"},
    ]
    (folder / "drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_command(folder: Path, *args: str, **files: str) -> None:
    given = {"run": "run", "exemplars": "letters", "candidates": "drafts.jsonl", **files}
    flags = [word for name, file in given.items() for word in (f"--{name}", str(folder / file))]
    experiments.score.main([*flags, *args])


def test_candidates_are_ranked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(folder, "--out", str(tmp_path / "scores.jsonl"))
    table = [line for line in capsys.readouterr().out.splitlines() if "abc" in line]
    assert [line.split("│")[2].strip() for line in table] == ["7", "other prompt", "plain"]
    rows = read_records(tmp_path / "scores.jsonl", ScoredCandidate)
    assert [(row.id, row.rank) for row in rows] == [("plain", 3), ("7", 1), ("other prompt", 2)]
    wanted = [
        planted_score(["abc", "xx"], "abc def"),
        planted_score(["abc", "xx"], "xxxx abc"),
        planted_score(["abc", "xx"], "xxx abc", "say it"),
    ]
    assert [row.score for row in rows] == wanted
    assert all(row.samples == (row.score,) and row.reasoning == ("",) for row in rows)


def test_the_best_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(folder, "--best", "--n", "2")
    assert capsys.readouterr().out == "xxxx abc\n"


def test_exemplars_are_files_or_lines(folder: Path, tmp_path: Path) -> None:
    assert read_exemplars(folder / "letters") == ("abc", "xx")
    (tmp_path / "letters.jsonl").write_text('{"text": "abc"}\n\n{"text": "def", "author": "d"}\n')
    assert read_exemplars(tmp_path / "letters.jsonl") == ("abc", "def")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n', "line 1: no 'id'"),
        ('{"id": "a", "text": "a"}\n{"id": "", "text": "b"}\n', "line 2: no 'id'"),
        ('{"id": [1], "text": "a"}\n', "line 1: no 'id'"),
        ('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', "line 2: the id '1' is given twice"),
        ('{"id": 1, "text": " "}\n', "line 1: no 'text', or an empty one"),
        ('{"id": 1}\n', "line 1: no 'text', or an empty one"),
        ('{"id": 1, "text": "a", "prompt": 3}\n', "line 1: 'prompt' is no text"),
        ('{"id": 1, "text": "a"\n', "line 1: not JSON"),
        ('["a"]\n', "line 1: expected a JSON object"),
        ("\n", "holds no candidates"),
        ('{"id": "z", "text": "' + "a" * 99 + '"}\n', "request of the candidates z: the prompt"),
        ('{"id": 1, "text": "\\ud800"}\n', "candidate 1 holds half a surrogate pair"),
    ],
)
def test_candidates_that_cannot_be_read(
    folder: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "drafts.jsonl").write_text(content)
    with pytest.raises(ValueError) as error:
        run_command(folder, candidates=str(tmp_path / "drafts.jsonl"))
    assert words in str(error.value)
    assert "drafts.jsonl" in str(error.value) or "candidate" in str(error.value)


def test_other_bad_input(folder: Path, tmp_path: Path) -> None:
    def refused(*args: str, **files: str) -> str:
        with pytest.raises(ValueError) as error:
            run_command(folder, *args, **files)
        return str(error.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty: holds no texts" in refused(exemplars=str(empty))
    assert "none.jsonl: no such file" in refused(exemplars="none.jsonl")
    (empty / "a.txt").write_bytes(b"\xff")
    assert "a.txt: not readable UTF-8 text" in refused(exemplars=str(empty))
    (empty / "a.txt").write_text("\n")
    assert "a.txt: no 'text', or an empty one" in refused(exemplars=str(empty))
    assert "--n 0: must be at least 1" in refused("--n", "0")
    assert "--stage rft: " in refused("--stage", "rft")
    assert f"{tmp_path / 'runs'}: no such folder" in refused(run=str(tmp_path / "runs"))


def test_the_best_of_n_example(folder: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "best_of_n.py"
    files = ["--run", folder / "run", "--exemplars", folder / "letters"]
    done = subprocess.run(
        [sys.executable, script, *files, "--drafts", folder / "drafts.jsonl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = planted_score(["abc", "xx"], "xxxx abc")
    assert done.stdout.startswith(f"7: {wanted:.2f} (spread 0.00)\nxxxx abc\n")
