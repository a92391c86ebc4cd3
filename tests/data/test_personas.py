import re
from collections import defaultdict
from dataclasses import replace

import pytest

from persrm_jax.data.personas import ELSEWHERE, HABITS, PersonaConfig, make_personas

CFG = PersonaConfig(num_personas=24, texts=40, clauses=4)
FULL_FORMS = re.compile(r"\b(i am|i will|it is|do not|can not|we are)\b", re.IGNORECASE)
SHORT_FORMS = re.compile(r"\b(i'm|i'll|it's|don't|can't|we're)\b", re.IGNORECASE)
STRESS = re.compile(r"\b(really|totally|very much)\b", re.IGNORECASE)
HEDGES = re.compile(r"\b(maybe|perhaps|i think|i guess)\b", re.IGNORECASE)


def _rates(texts: list[str]) -> dict[str, float]:
    """How often a person follows each habit, counted in the texts alone."""
    sentences = [s for text in texts for s in re.findall(r"[^.!?]+[.!?]", text)]
    statements = [s for s in sentences if not s.endswith("?")]
    joins = sum(len(re.findall(" and ", s)) for s in sentences)
    clauses = len(sentences) + joins
    short = sum(len(SHORT_FORMS.findall(s)) for s in sentences)
    full = sum(len(FULL_FORMS.findall(s)) for s in sentences)
    capitals = [s.strip()[0] for s in sentences]
    return {
        "exclaims": sum(s.endswith("!") for s in statements) / len(statements),
        "contracts": short / (short + full),
        "capitals": sum(c.isupper() for c in capitals) / len(capitals),
        "hedges": sum(len(HEDGES.findall(s)) for s in sentences) / clauses,
        "asks": sum(s.endswith("?") for s in sentences) / len(sentences),
        "joins": 2 * joins / clauses,  # a clause joins every second time at most
        "stresses": sum(len(STRESS.findall(s)) for s in sentences) / clauses,
    }


def test_the_same_seed_gives_the_same_people() -> None:
    cfg = PersonaConfig(num_personas=6, texts=5)
    documents = make_personas(cfg, 3)
    assert make_personas(cfg, 3) == documents
    others = make_personas(cfg, 4)
    assert [d.doc_id for d in others] == [d.doc_id for d in documents]
    assert [d.text for d in others] != [d.text for d in documents]


def test_shape_of_the_corpus() -> None:
    documents = make_personas(PersonaConfig(num_personas=6, texts=5), 0)
    assert len(documents) == 30 and len({d.doc_id for d in documents}) == 30
    for number in range(6):
        own = [d for d in documents if d.author == f"persona-{number:03d}"]
        assert [d.split for d in own] == ["train", "test", "train", "test", "train"]
    assert {d.domain for d in documents} == {"personas"}
    assert all(d.text and d.text == d.text.strip() and "{" not in d.text for d in documents)


def test_habits_can_be_counted_in_the_texts() -> None:
    texts = defaultdict(list)
    for document in make_personas(CFG, 0):
        texts[document.author].append(document.text)
    rates = {author: _rates(own) for author, own in texts.items()}
    assert set(HABITS) == set(next(iter(rates.values())))
    combinations = set()
    for author, found in rates.items():
        for habit, rate in found.items():
            assert rate < 0.45 or rate > 0.55, (author, habit, rate)
        combinations.add(tuple(found[habit] > 0.5 for habit in HABITS))
    assert len(combinations) == len(rates), "each persona has its own combination"


def test_habits_are_kept_to_most_of_the_time_not_always() -> None:
    documents = make_personas(PersonaConfig(num_personas=8, texts=40, clauses=4), 1)
    texts = defaultdict(list)
    for document in documents:
        texts[document.author].append(document.text)
    contractions = [_rates(own)["contracts"] for own in texts.values()]
    assert all(0 < rate < 1 for rate in contractions)


def test_more_people_than_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match="--personas.num-personas"):
        PersonaConfig(num_personas=2 ** len(HABITS) + 1)


def test_people_share_their_topics() -> None:
    things = re.compile(r"\bthe [a-z]+\b", re.IGNORECASE)
    spoken = defaultdict(set)
    for document in make_personas(CFG, 0):
        spoken[document.author] |= {t.lower() for t in things.findall(document.text)}
    common = set.union(*spoken.values())
    assert len(common) > 20
    assert all(len(own) > 0.6 * len(common) for own in spoken.values())


def test_texts_elsewhere_are_on_other_topics_in_the_same_hand() -> None:
    cfg = replace(CFG, num_personas=8)
    documents = make_personas(replace(cfg, elsewhere=40), 1)
    here = [d for d in documents if d.domain == "personas"]
    there = [d for d in documents if d.domain == ELSEWHERE]
    assert here == make_personas(cfg, 1), "the others stay as they are"
    assert len(there) == 8 * 40 and len({d.doc_id for d in documents}) == len(documents)
    things = [
        set(re.findall(r"the (\w+)", " ".join(d.text for d in ds).lower())) for ds in (here, there)
    ]
    assert things[0] & things[1] == set() and len(things[1]) == 16
    rates = []
    for some in (here, there):
        texts = defaultdict(list)
        for document in some:
            texts[document.author].append(document.text)
        rates.append({person: _rates(said) for person, said in texts.items()})
    for person, mine in rates[0].items():
        for habit in HABITS:
            assert mine[habit] == pytest.approx(rates[1][person][habit], abs=0.35), (person, habit)
