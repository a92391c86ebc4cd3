"""The protocol's tables by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from persrm_jax.data.pairs import make_test_pairs
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.splits import PairConfig
from persrm_jax.evaluation.audit import audit
from persrm_jax.evaluation.judged import Judged, read_judged
from persrm_jax.evaluation.tables import (
    Grid,
    against_cheats,
    by_calibration,
    by_exemplars,
    by_kind,
    by_people,
    by_votes,
)
from persrm_jax.jsonl import write_records
from persrm_jax.types import Pair, Prediction, right_verdict

DOCUMENTS = make_personas(PersonaConfig(num_personas=8, texts=8), 0)
CFG = PairConfig(num_exemplars=1, num_test=8, negatives=("other_author", "other_author_same_topic"))
PAIRS = make_test_pairs(DOCUMENTS, CFG, 0)


def predictions(
    pairs: list[Pair], judge: str, condition: str, right: int, samples: int = 1
) -> list[Prediction]:
    """The first `right` pairs are judged rightly, 9 against 1; of several samples the last is
    always wrong."""
    rows = []
    for i, pair in enumerate(pairs):
        for order in ("AB", "BA"):
            for sample in range(samples):
                good = i < right and (samples == 1 or sample < samples - 1)
                is_a = (right_verdict(order) == "A") == good  # type: ignore[arg-type]
                a, b = (9.0, 1.0) if is_a else (1.0, 9.0)
                rows.append(
                    Prediction(
                        pair.pair_id, order, condition, judge, 0, sample, a, b,
                        "A" if is_a else "B", True, 10, "",
                    )  # type: ignore[arg-type]
                )  # fmt: skip
    return rows


JUDGED = Judged(
    PAIRS,
    {
        ("sft", "1"): predictions(PAIRS, "sft", "1", 4),
        ("rft", "1"): predictions(PAIRS, "rft", "1", 6),
        ("rft", "0"): predictions(PAIRS, "rft", "0", 4),
        ("rft", "8"): predictions(PAIRS, "rft", "8", 8),
        ("rft", "wrong_author"): predictions(PAIRS, "rft", "wrong_author", 4),
        ("longer", "1"): [replace(p, tokens=0) for p in predictions(PAIRS, "longer", "1", 2)],
    },
    {("rft", "1"): predictions(PAIRS, "rft", "1", 8, samples=4)},
)


def first_words(grid: Grid | None) -> list[list[str]]:
    assert grid is not None
    return [[cell.split(" ")[0] for cell in row] for row in grid.rows]


def test_only_judges_asked_with_several_numbers_are_in_the_table_of_exemplars() -> None:
    grid = by_exemplars(JUDGED.rows())
    assert grid is not None
    assert grid.header == ("judge", "k = 0", "k = 1", "k = 8", "wrong author")
    assert first_words(grid) == [["rft", "0.500", "0.750", "1.000", "0.500"]]
    rest = {key: rows for key, rows in JUDGED.predictions.items() if key[1] not in ("0", "8")}
    assert by_exemplars(Judged(PAIRS, rest, {}).rows()) is None


def test_a_judge_stands_against_what_needs_no_exemplars() -> None:
    pairs = make_test_pairs(DOCUMENTS, replace(CFG, num_test=60), 0)
    kinds = ["other_author", "other_author_same_topic"]
    first = [pair for pair in pairs if pair.negative_type == kinds[0]]
    second = [pair for pair in pairs if pair.negative_type == kinds[1]]
    assert len(first) == len(second) == 30
    found = {
        # Right on all of the first kind, on half of the second.
        ("rft", "1"): predictions(first, "rft", "1", 30) + predictions(second, "rft", "1", 15),
        ("rft", "wrong_author"): [
            *predictions(first, "rft", "wrong_author", 15),
            *predictions(second, "rft", "wrong_author", 3),
        ],
        ("sft", "1"): predictions(pairs, "sft", "1", 60),
        ("sft", "wrong_author"): predictions(pairs, "sft", "wrong_author", 60),
    }
    grid = against_cheats(Judged(pairs, found, {}))
    assert grid is not None and len(grid.rows) == 6
    assert [row[0] for row in grid.rows] == [kinds[0], "", "", kinds[1], "", ""]
    for i, (some, right, wrong) in enumerate([(first, 30, 15), (second, 15, 3)]):
        own, control, cheat = grid.rows[3 * i : 3 * i + 3]
        best = max(audit(some), key=lambda cheat: cheat.accuracy)
        assert own[1] == "rft" and own[2].startswith(f"{right / 30:.3f} [")
        assert control[1] == "rft, wrong author" and control[2].startswith(f"{wrong / 30:.3f} [")
        found = f"{best.accuracy:.3f} [{best.low:.3f}, {best.high:.3f}]"
        assert cheat[1:3] == (f"cheat: {best.cheat}", found)
        assert best.high < 1 and own[3] == ("yes" if right == 30 else "no")
    assert against_cheats(JUDGED) is None, "too few pairs for a cheat to be fitted"


def test_kinds_are_told_apart() -> None:
    grid = by_kind(JUDGED)
    names = ("other_author", "other_author_same_topic")
    assert grid is not None
    assert grid.header[1:] == tuple(f"{n}{c}" for n in names for c in ("", ", wrong author"))
    expected = {}
    for judge, right in (("longer", 2), ("sft", 4), ("rft", 6)):
        kinds = {kind: [p for p in PAIRS if p.negative_type == kind] for kind in names}
        good = {p.pair_id for p in PAIRS[:right]}
        expected[judge] = [
            f"{sum(p.pair_id in good for p in some) / len(some):.3f}" for some in kinds.values()
        ]
    rows = {row[0]: row[1:] for row in first_words(grid)}
    assert {judge: row[::2] for judge, row in rows.items()} == expected
    controls = {judge: row[1::2] for judge, row in rows.items()}
    assert controls == {"longer": ["-", "-"], "sft": ["-", "-"], "rft": ["0.500", "0.500"]}
    one = [pair for pair in PAIRS if pair.negative_type == "other_author"]
    assert by_kind(Judged(one, {("sft", "1"): predictions(one, "sft", "1", 1)}, {})) is None


def test_sets_stand_side_by_side() -> None:
    seen = Judged(PAIRS, {("rft", "1"): predictions(PAIRS, "rft", "1", 8)}, {})
    grid = by_people({"unseen": JUDGED, "seen": seen})
    assert first_words(grid) == [
        ["longer", "0.250", "-"],
        ["sft", "0.500", "-"],
        ["rft", "0.750", "1.000"],
    ]
    assert by_people({"unseen": JUDGED}) is None


def test_votes_outdo_one_sample_in_four_that_is_wrong() -> None:
    grid = by_votes(JUDGED)
    # Samples in turns of two: right with right, right with wrong: a tie.
    assert first_words(grid) == [
        ["rft", "1", "1", "10", "0.750", "0.750"],
        ["rft", "1", "2", "20", "0.750", "0.750"],
        ["rft", "1", "4", "40", "1.000", "1.000"],
    ]
    assert by_votes(replace(JUDGED, samples={})) is None


def test_calibration_is_of_models_alone() -> None:
    # P = .9 always: right in 4 of 8, then in 6 of 8.
    grid = by_calibration(JUDGED)
    assert first_words(grid) == [["sft", "0.400", "0.410", "16"], ["rft", "0.150", "0.210", "16"]]


def test_a_grid_as_markdown() -> None:
    grid = Grid("T", ("a", "b"), [("x|y", "1")], "Note.")
    assert grid.markdown() == "Note.\n\n| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"
    assert grid.rich().row_count == 1


def test_folders_are_read_back(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        write_records(folder / "pairs.jsonl", PAIRS)
        write_records(folder / "own.v2.1.jsonl", JUDGED.predictions["rft", "1"])
        write_records(folder / "samples" / "rft.1.jsonl", JUDGED.samples["rft", "1"])
    judged = read_judged([tmp_path / "0", tmp_path / "1"])
    assert len(judged.pairs) == 2 * len(PAIRS)
    assert len({pair.author for pair in judged.pairs}) == 2 * len({p.author for p in PAIRS})
    assert judged.predictions.keys() == {("own.v2", "1")} and len(judged.samples["rft", "1"]) == 128
    assert judged.rows()[0].accuracy.mean == pytest.approx(0.75)
