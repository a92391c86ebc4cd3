import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from persrm_jax.data.diction import Diction
from persrm_jax.data.facts import FACTS, LEVELS, Yardstick, measure
from persrm_jax.data.pairs import make_pairs
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.prompts import Judgement, PromptConfig, judge_messages, parse_judgement
from persrm_jax.data.splits import PairConfig
from persrm_jax.data.traces import (
    Teacher,
    TeacherConfig,
    fit_teacher,
    judge_one,
    judge_two,
    make_trace,
    make_traces,
)
from persrm_jax.types import Pair

COMPACT = PromptConfig(template="compact")
FULL = PromptConfig(template="full")
NAMES = ("exclamation marks", "question marks", "commas", "digits")
# Low is none, medium at most one a sentence, high is more (of digits: a tenth of the letters).
NO_FACTS = Yardstick((), np.zeros(0, int), np.zeros((0, 2)))
TEACHER = Teacher(
    Yardstick(
        NAMES,
        np.array([list(FACTS).index(name) for name in NAMES]),
        np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 10.0]]),
    ),
    # "so" is common; the others weigh log 11 and log 50, and a new word log 100.
    Diction(99, Counter({"so": 60, "and": 8, "yes": 1})),
    num_words=0,
)
QUOTING = replace(TEACHER, yardstick=NO_FACTS, num_words=2)
PERSON = ("Yes, no, and so on! ", "One, two, three!")
NEAR = "Here, there, everywhere! Oh!"  # ! medium, ? low, commas medium, digits low
FAR = "Is it 2?"  # ! low, ? medium, commas low, digits high


@pytest.fixture(scope="module")
def world() -> tuple[list[Pair], Teacher]:
    documents = make_personas(PersonaConfig(num_personas=24, texts=6), 0)
    cfg = PairConfig(num_exemplars=2, num_train=80, num_dev=2, num_test=20, num_seen=2)
    pairs = make_pairs(documents, cfg, 0).main
    trained = {p.author for p in pairs if p.author_split == "train"}
    known = [d for d in documents if d.author in trained and d.split == "train"]
    return pairs, fit_teacher(known, TeacherConfig(num_facts=5))


def test_a_trace_by_hand() -> None:
    reasoning, judgement = judge_two(TEACHER, PERSON, NEAR, FAR, COMPACT)
    assert reasoning.splitlines() == [
        "exclamation marks: medium medium low A",
        "question marks: low low medium A",
        "commas: high medium low A",
        "digits: low low high A",
    ]
    assert judgement == Judgement("A", 10.0, 0.0)
    reasoning, judgement = judge_two(TEACHER, PERSON, FAR, NEAR, FULL)
    assert reasoning.splitlines()[0] == (
        "exclamation marks: the person medium, A low, B medium; nearer: B"
    )
    assert judgement == Judgement("B", 0.0, 10.0)


def test_a_fact_in_which_neither_is_nearer_counts_half() -> None:
    both = "Oh! Is it?"  # ! and ? medium, no commas, no digits
    reasoning, judgement = judge_two(TEACHER, PERSON, NEAR, both, COMPACT)
    assert [line.split()[-1] for line in reasoning.splitlines()] == ["even", "A", "A", "even"]
    assert judgement == Judgement("A", 7.5, 2.5)
    assert judge_two(TEACHER, PERSON, both, both, COMPACT)[1] == Judgement("tie", 5.0, 5.0)


def test_words_in_common_by_hand() -> None:
    a, b = "And YES, so on: no way!", "And so what?"
    reasoning, judgement = judge_two(QUOTING, PERSON, a, b, FULL)
    # Of and, yes, on and no the two rarest are on and no.
    assert reasoning == "words shared with the person: A on, no (2); B And (1); nearer: A"
    assert judgement == Judgement("A", 6.7, 3.3)
    assert judge_two(QUOTING, PERSON, b, a, COMPACT)[0] == "words: And 1 | on, no 2 | B"
    nothing = judge_two(QUOTING, PERSON, "so", "Never heard.", FULL)
    assert nothing == (
        "words shared with the person: A none (0); B none (0); nearer: even",
        Judgement("tie", 5.0, 5.0),
    )


def test_words_and_facts_weigh_alike() -> None:
    both = replace(TEACHER, num_words=2)
    facts = judge_two(TEACHER, PERSON, NEAR, FAR, FULL)
    words = judge_two(QUOTING, PERSON, NEAR, FAR, FULL)
    assert facts[1].score_a == 10 and words[1].score_a == 5
    reasoning, judgement = judge_two(both, PERSON, NEAR, FAR, FULL)
    assert reasoning == f"{words[0]}\n{facts[0]}"
    assert judgement == Judgement("A", 7.5, 2.5)


def test_a_text_alone_is_scored_by_its_words() -> None:
    reasoning, judgement = judge_one(QUOTING, PERSON, "And yes, so on", FULL)
    assert reasoning == "words shared with the person: yes, on (2)"
    assert judgement == Judgement(None, 10.0)
    assert judge_one(QUOTING, PERSON, "so, and", FULL)[1] == Judgement(None, 5.0)
    nothing = judge_one(QUOTING, PERSON, "so what", COMPACT)
    assert nothing == ("words: none 0", Judgement(None, 0.0))


@pytest.mark.parametrize("cfg", [COMPACT, FULL], ids=["compact", "full"])
def test_lines_and_scores_agree_with_recomputed_levels(
    world: tuple[list[Pair], Teacher], cfg: PromptConfig
) -> None:
    pairs, teacher = world
    low_high = dict(zip(teacher.yardstick.names, teacher.yardstick.terciles, strict=True))

    def level(name: str, texts: tuple[str, ...]) -> str:
        value = sum(FACTS[name](text) for text in texts) / len(texts)
        low, high = low_high[name]
        return "low" if value <= low else "medium" if value <= high else "high"

    pattern = r"(.+?): (?:the person )?(\w+),? (?:A )?(\w+),? (?:B )?(\w+)(?:; nearer:)? (\w+)"
    for pair in pairs[:30]:
        for order in ("AB", "BA"):
            a, b = (pair.chosen, pair.rejected) if order == "AB" else (pair.rejected, pair.chosen)
            trace = make_trace(pair, order, teacher, cfg)
            judgement = parse_judgement(trace.response, cfg)
            assert judgement is not None and judgement.verdict == trace.verdict
            lines = trace.response.split("<think>\n")[1].split("\n</think>")[0].splitlines()
            assert len(lines) == 5
            wins = {"A": 0, "B": 0, "even": 0}
            for line, expected in zip(lines, teacher.yardstick.names, strict=True):
                match = re.fullmatch(pattern, line)
                assert match is not None, line
                name, person, level_a, level_b, nearer = match.groups()
                assert name == expected
                texts = [pair.exemplars, (a,), (b,)]
                assert [person, level_a, level_b] == [level(name, t) for t in texts]
                away_a = abs(LEVELS.index(level_a) - LEVELS.index(person))
                away_b = abs(LEVELS.index(level_b) - LEVELS.index(person))
                assert nearer == ("A" if away_a < away_b else "B" if away_b < away_a else "even")
                wins[nearer] += 1
            assert judgement.score_a == pytest.approx(10 * (wins["A"] + wins["even"] / 2) / 5)
            assert judgement.score_b == pytest.approx(10 * (wins["B"] + wins["even"] / 2) / 5)
            assert trace.messages == judge_messages(pair, order, cfg)
            assert (trace.pair_id, trace.order) == (pair.pair_id, order)


@pytest.mark.parametrize("answer", ["scores", "verdict"])
def test_only_right_verdicts_are_kept(world: tuple[list[Pair], Teacher], answer: str) -> None:
    pairs, teacher = world
    cfg = replace(COMPACT, answer=answer)
    # Half of the pairs claim that the other's text is the person's own.
    swapped = [
        replace(p, chosen=p.rejected, rejected=p.chosen) if i % 2 else p
        for i, p in enumerate(pairs)
    ]
    kept = {t.pair_id: t for t in make_traces(swapped, teacher, cfg)}
    num_right = 0
    for pair in swapped:
        judged = judge_two(teacher, pair.exemplars, *pair.candidates(), cfg)[1]
        side = "A" if pair.order == "AB" else "B"
        assert (pair.pair_id in kept) == (judged.verdict == side)
        if pair.pair_id in kept:
            num_right += 1
            assert kept[pair.pair_id].order == pair.order
            parsed = parse_judgement(kept[pair.pair_id].response, cfg)
            assert parsed is not None and parsed.verdict == side
    assert 0 < num_right < len(swapped)


@pytest.mark.parametrize("template", ["full", "compact"])
def test_of_texts_shown_alone_both_traces_are_kept_or_none(
    world: tuple[list[Pair], Teacher], template: str
) -> None:
    pairs, teacher = world
    cfg = PromptConfig(template=template, answer="score")
    kept: dict[str, dict[str, float]] = {}
    for trace in make_traces(pairs, teacher, cfg):
        judgement = parse_judgement(trace.response, cfg)
        assert judgement is not None and judgement.score_a is not None
        lines = trace.response.split("<think>\n")[1].split("\n</think>")[0].splitlines()
        pattern = r"(.+?): (?:the person )?(\w+),? (?:the candidate )?(\w+)"
        agreement = []
        for line in lines:
            match = re.fullmatch(pattern, line)
            assert match is not None, line
            levels = [LEVELS.index(word) for word in match.groups()[1:]]
            agreement.append(1 - abs(levels[0] - levels[1]) / 2)
        assert judgement.score_a == pytest.approx(10 * sum(agreement) / 5)
        kept.setdefault(trace.pair_id, {})[trace.order] = judgement.score_a
    assert 0 < len(kept) < len(pairs)
    for scores in kept.values():
        assert scores["AB"] > scores["BA"], "the chosen text has the higher score"


def test_the_teacher_beats_chance_on_people_it_has_not_seen(
    world: tuple[list[Pair], Teacher],
) -> None:
    pairs, teacher = world
    unseen = [p for p in pairs if p.author_split == "test"]
    swapped = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in unseen]
    right, wrong = (len([*make_traces(them, teacher, COMPACT)]) for them in (unseen, swapped))
    assert right > 2 * wrong


def test_pairs_are_judged_in_both_orders_if_asked(world: tuple[list[Pair], Teacher]) -> None:
    pairs, teacher = world
    kept = defaultdict(dict)
    for trace in make_traces(pairs, teacher, COMPACT, both_orders=True):
        kept[trace.pair_id][trace.order] = trace
    assert 0 < len(kept) < len(pairs)
    for orders in kept.values():
        assert {o: t.verdict for o, t in orders.items()} == {"AB": "A", "BA": "B"}


def test_the_teachers_levels_are_of_its_texts() -> None:
    documents = make_personas(PersonaConfig(num_personas=8, texts=6), 0)
    people = {f"persona-{i:03d}" for i in range(4)}
    known = [d for d in documents if d.author in people and d.split == "train"]
    ours = fit_teacher(known, TeacherConfig(num_facts=4)).yardstick
    values = np.array([measure(d.text) for d in known])
    assert (ours.terciles.min(axis=1) >= values[:, ours.columns].min(axis=0)).all()
    assert (ours.terciles.max(axis=1) <= values[:, ours.columns].max(axis=0)).all()


def test_a_teacher_without_evidence_is_refused() -> None:
    with pytest.raises(ValueError, match="num-facts or --teacher.num-words must be above 0"):
        TeacherConfig(num_facts=0)
    assert TeacherConfig(num_facts=0, num_words=5).num_words == 5
