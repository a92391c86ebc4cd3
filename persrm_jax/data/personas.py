"""A small world of made-up people whose texts we generate: the corpus of the `tiny` preset.

A persona is a habit (high or low) in each of `HABITS`; what a text says is drawn from a topic that
all personas share, so that only style tells them apart. Habits are kept to most of the time, not
always: one text is evidence, not proof.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from persrm_jax.types import Document

HABITS = ("exclaims", "contracts", "capitals", "hedges", "asks", "joins", "stresses")
_KEPT = 0.95
ELSEWHERE = "personas-elsewhere"
"""The domain of texts on other topics."""

_TOPICS = {
    "garden": ("the roses", "the pond", "the fence", "the herbs"),
    "kitchen": ("the soup", "the oven", "the bread", "the recipe"),
    "travel": ("the train", "the hotel", "the map", "the ticket"),
    "office": ("the report", "the meeting", "the budget", "the printer"),
    "music": ("the piano", "the concert", "the song", "the choir"),
    "sport": ("the match", "the bike", "the coach", "the race"),
    "house": ("the roof", "the garage", "the sofa", "the paint"),
    "school": ("the exam", "the essay", "the library", "the lesson"),
}
_ELSEWHERE = {
    "sea": ("the boat", "the harbour", "the net", "the island"),
    "theatre": ("the stage", "the costume", "the curtain", "the script"),
    "farm": ("the barn", "the tractor", "the sheep", "the orchard"),
    "hospital": ("the doctor", "the ward", "the medicine", "the bandage"),
}
"""Topics that no text of the domain `personas` is about."""
_CLAUSES = (
    "{I am} happy with {x}",
    "{I am} looking at {x}",
    "{I will} see {x} on Monday",
    "{I will} bring {x} later",
    "{it is} all about {x}",
    "{it is} time for {x}",
    "we {do not} need {x}",
    "we {do not} like {x}",
    "they {can not} find {x}",
    "they {can not} move {x}",
    "{we are} done with {x}",
    "{we are} waiting for {x}",
)
_FORMS = {
    "I am": "I'm",
    "I will": "I'll",
    "it is": "it's",
    "do not": "don't",
    "can not": "can't",
    "we are": "we're",
}
_HEDGES = ("maybe", "perhaps", "I think", "I guess")
_TAGS = ("right", "okay", "yes")
_STRESS = ("really", "totally", "very much")


@dataclass(frozen=True)
class PersonaConfig:
    """Size of the persona world."""

    num_personas: int = 128
    """People, at most 128: each has a combination of habits that nobody else has."""
    texts: int = 16
    """Texts of each person, half of them exemplars, half candidates."""
    clauses: int = 2
    """Statements a text makes."""
    elsewhere: int = 0
    """Further texts of each person, of the domain `personas-elsewhere`: on topics of their own."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_personas <= 2 ** len(HABITS):
            raise ValueError(
                f"--personas.num-personas {self.num_personas}: must be 1 to {2 ** len(HABITS)}"
            )


def make_personas(cfg: PersonaConfig, seed: int) -> list[Document]:
    """Generates every persona's texts. The same seed gives the same texts."""
    rng, elsewhere = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 11])
    combinations = rng.permutation(2 ** len(HABITS))
    documents: list[Document] = []
    for number in range(cfg.num_personas):
        code = int(combinations[number])
        habits = {name: bool(code >> bit & 1) for bit, name in enumerate(HABITS)}
        person = f"persona-{number:03d}"
        documents += _texts(person, "personas", habits, _TOPICS, cfg.texts, cfg, rng)
        documents += _texts(person, ELSEWHERE, habits, _ELSEWHERE, cfg.elsewhere, cfg, elsewhere)
    return documents


def _texts(
    person: str,
    domain: str,
    habits: dict[str, bool],
    topics: Mapping[str, tuple[str, ...]],
    count: int,
    cfg: PersonaConfig,
    rng: np.random.Generator,
) -> Iterator[Document]:
    for number in range(count):
        topic = list(topics)[int(rng.integers(len(topics)))]
        yield Document(
            author=person,
            doc_id=f"{person}-{'e' if domain == ELSEWHERE else ''}{number:02d}",
            domain=domain,
            split="train" if number % 2 == 0 else "test",
            text=_write(habits, topics[topic], cfg.clauses, rng),
        )


def _write(
    habits: dict[str, bool], things: tuple[str, ...], num_clauses: int, rng: np.random.Generator
) -> str:
    def does(habit: str) -> bool:
        return bool(habits[habit] == (rng.random() < _KEPT))

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    clauses = []
    for _ in range(num_clauses):
        clause = pick(_CLAUSES).replace("{x}", pick(things))
        for full, short in _FORMS.items():
            clause = clause.replace(f"{{{full}}}", short if does("contracts") else full)
        if does("stresses"):
            clause = f"{clause} {pick(_STRESS)}"
        clauses.append(f"{pick(_HEDGES)} {clause}" if does("hedges") else clause)

    sentences: list[list[str]] = []
    for clause in clauses:
        if sentences and len(sentences[-1]) == 1 and does("joins"):
            sentences[-1].append(clause)
        else:
            sentences.append([clause])
    written = []
    for parts in sentences:
        sentence = " and ".join(parts)
        sentence = sentence[0].upper() + sentence[1:] if does("capitals") else sentence.lower()
        if does("asks"):
            sentence += f" {pick(_TAGS)}?"
        else:
            sentence += "!" if does("exclaims") else "."
        written.append(sentence)
    return " ".join(written)
