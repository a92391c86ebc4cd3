from persrm_jax.evaluation.samples import outcome, pick_samples
from persrm_jax.types import Order, Pair, Prediction, Verdict

NUM = 12


def _pair(i: int) -> Pair:
    order: Order = "AB" if i % 2 else "BA"
    return Pair(
        f"p{i}", "ann", "test", "d", "", ("hey",), ("1",), "mine", "2", "theirs", "3", "bob",
        "other_author", order, "human", 0,
    )  # fmt: skip


def _prediction(
    pair: Pair, verdict: Verdict | None, order: Order | None = None, **changes: object
) -> Prediction:
    fields: dict = dict(
        pair_id=pair.pair_id,
        order=order or pair.order,
        condition="1",
        model="m",
        seed=0,
        sample=0,
        score_a=None,
        score_b=None,
        verdict=verdict,
        parsed=verdict is not None,
        tokens=3,
        completion="said",
    )
    return Prediction(**fields | changes)


PAIRS = [_pair(i) for i in range(NUM)]


def _says(right: set[int], unparsed: set[int] = frozenset()) -> list[Prediction]:
    """Both orders of each pair, the other one always right and first."""
    found = []
    for i, pair in enumerate(PAIRS):
        mine: Verdict = "A" if pair.order == "AB" else "B"
        theirs: Verdict = "B" if pair.order == "AB" else "A"
        found.append(_prediction(pair, theirs, "BA" if pair.order == "AB" else "AB"))
        verdict = None if i in unparsed else mine if i in right else theirs
        found.append(_prediction(pair, verdict))
    return found


def test_outcomes() -> None:
    pair = _pair(1)
    assert [outcome(_prediction(pair, v)) for v in ("A", "B", "tie", None)] == [
        "right", "wrong", "tie", "not parsed",
    ]  # fmt: skip
    assert outcome(_prediction(pair, "A", "BA")) == "wrong"


def test_gains_losses_and_others_are_picked() -> None:
    everyone = set(range(NUM))
    said = {
        "length": [_prediction(pair, "A", completion="") for pair in PAIRS],
        "sft": _says(everyone - {2, 3, 5, 7}, unparsed={5}),
        "rft": _says(everyone - {7, 8}),
    }
    samples = pick_samples(PAIRS, said)
    assert len({s.pair.pair_id for s in samples}) == len(samples) == 5
    assert [s.why for s in samples] == [
        "sft failed, rft was right",
        "sft failed, rft was right",
        "sft was right, rft failed",
        "drawn at random",
        "drawn at random",
    ]
    assert {s.pair.pair_id for s in samples[:2]} < {"p2", "p3", "p5"}
    assert samples[2].pair.pair_id == "p8"
    for sample in samples:
        assert list(sample.judgements) == ["sft", "rft"], "what wrote nothing is not shown"
        assert {p.order for p in sample.judgements.values()} == {sample.order}
        assert {p.pair_id for p in sample.judgements.values()} == {sample.pair.pair_id}
    assert samples == pick_samples(PAIRS, said)
    assert samples != pick_samples(PAIRS, said, seed=1)


def test_what_is_not_there_is_not_picked() -> None:
    assert pick_samples(PAIRS, {}) == []
    assert pick_samples(PAIRS, {"length": [_prediction(PAIRS[0], "A", completion="")]}) == []
    alone = pick_samples(PAIRS, {"sft": _says({1})}, each=3)
    assert [s.why for s in alone] == ["drawn at random"] * 3
    few = pick_samples(PAIRS, {"sft": _says({1}), "rft": [_prediction(PAIRS[4], "A")]})
    assert [s.pair.pair_id for s in few] == ["p4"], "every model judged the pair"


def test_of_several_samples_the_first_is_shown() -> None:
    said = [_prediction(PAIRS[0], "A", completion=f"{i}", sample=i) for i in range(3)]
    (sample,) = pick_samples(PAIRS, {"sft": said})
    assert sample.judgements["sft"].completion == "0"
