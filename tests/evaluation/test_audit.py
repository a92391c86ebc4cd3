"""Cheats find what can be found without the person, and nothing where there is nothing."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import experiments.audit
from persrm_jax.evaluation.audit import CHEATS, audit
from persrm_jax.jsonl import write_records
from persrm_jax.types import NegativeType, Pair

WORDS = "stone river hill tree road wall door window table chair paper letter bread house".split()


def _text(rng: random.Random, length: int = 20, words: list[str] = WORDS) -> str:
    return " ".join(rng.choice(words) for _ in range(length)) + "."


def _pairs(
    change: Callable[[random.Random, Pair], Pair], kind: NegativeType = "mimic", count: int = 120
) -> list[Pair]:
    rng = random.Random(0)
    pairs = []
    for i in range(count):
        author, other = rng.sample(range(8), 2)
        pair = Pair(
            pair_id=f"{kind}-{i}",
            author=f"a{author}",
            author_split="train",
            domain="d",
            prompt="",
            exemplars=("one",),
            exemplar_ids=("1",),
            chosen=_text(rng),
            chosen_id="c",
            rejected=_text(rng),
            rejected_id="r",
            rejected_author=f"a{other}" if kind.startswith("other") else "",
            negative_type=kind,
            order=rng.choice(("AB", "BA")),
            writer="w",
            seed=0,
        )
        pairs.append(change(rng, pair))
    return pairs


def _found(pairs: list[Pair]) -> dict[str, tuple[float, bool]]:
    return {f.cheat: (f.accuracy, f.is_flagged) for f in audit(pairs, num_resamples=200)}


def test_where_there_is_nothing_nothing_is_flagged() -> None:
    found = _found(_pairs(lambda _, pair: pair))
    assert set(found) == set(CHEATS)
    for accuracy, flagged in found.values():
        assert 0.35 < accuracy < 0.65 and not flagged


@pytest.mark.parametrize(
    ("cheat", "change"),
    [
        ("length", lambda rng, p: replace(p, rejected=_text(rng, 23))),
        ("char-3-grams", lambda rng, p: replace(p, rejected=_text(rng, 20, [*WORDS, "testament"]))),
        ("machine text", lambda _, p: replace(p, rejected=p.rejected.replace(" ", ", ", 4))),
        ("position", lambda rng, p: replace(p, order="AB" if rng.random() < 0.8 else "BA")),
    ],
)
def test_each_cheat_finds_its_own(
    cheat: str, change: Callable[[random.Random, Pair], Pair]
) -> None:
    accuracy, flagged = _found(_pairs(change))[cheat]
    assert accuracy > 0.7 and flagged


def test_a_persons_own_style_is_no_cheat() -> None:
    """Each author has a word that nobody else has: no use to who has not read the author."""

    def with_marks(_: random.Random, pair: Pair) -> Pair:
        mine, other = (f" {a[1] * 5}" * 4 for a in (pair.author, pair.rejected_author))
        return replace(pair, chosen=pair.chosen + mine, rejected=pair.rejected + other)

    found = _found(_pairs(with_marks, "other_author", 240))
    assert not found["char-3-grams"][1] and 0.35 < found["char-3-grams"][0] < 0.65


def test_kinds_are_told_apart() -> None:
    long = _pairs(lambda rng, p: replace(p, rejected=_text(rng, 30)))
    fair = _pairs(lambda _, p: p, "other_author")
    few = _pairs(lambda _, p: p, "random", 10)
    findings = audit([*long, *fair, *few], num_resamples=200)
    flagged = {(f.kind, f.cheat) for f in findings if f.is_flagged}
    assert {("mimic", "length"), ("all", "length")} <= flagged
    assert not any(kind == "other_author" for kind, _ in flagged)
    assert "random" not in {f.kind for f in findings}
    assert {f.num_pairs for f in findings} == {120, 250}


def test_too_few_pairs() -> None:
    with pytest.raises(ValueError, match="no pairs to audit"):
        audit([])
    with pytest.raises(ValueError, match="10 pairs: too few to audit; a kind needs 20"):
        audit(_pairs(lambda _, p: p, count=10))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = _pairs(lambda rng, p: replace(p, rejected=_text(rng, 30)))
    write_records(tmp_path / "pairs.jsonl", [*long, *_pairs(lambda _, p: p, "other_author")])
    experiments.audit.main([str(tmp_path), "--out", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "FLAGGED, solved without the person's texts: " in said and "mimic (length 1.00)" in said
    rows = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {r["kind"] for r in rows if r["flagged"]} == {"mimic", "all"}
    assert "| mimic | length | 1.000 |" in (tmp_path / "out" / "audit.md").read_text()
    assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")
    drawn = experiments.audit.draw_pairs(tmp_path / "pairs.jsonl", 50, 0)
    assert len({p.pair_id for p in drawn}) == 50
    assert {p.negative_type for p in drawn} == {"mimic", "other_author"}
    assert experiments.audit.draw_pairs(tmp_path / "pairs.jsonl", 50, 0) == drawn
