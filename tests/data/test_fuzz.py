"""Ten thousand outputs of a model gone mad: never an exception, never a guess."""

import json
import math
import random
import re

import pytest

from persrm_jax.data.prompts import PromptConfig, parse_judgement
from persrm_jax.data.verify import VerifyConfig, find_fault

PIECES = (
    "<think>", "</think>", "<answer>", "</answer>", "<|im_end|>", "[[A]]", "[[B]]", "[[C]]",
    '{"A": 7.5, "B": 3}', '{"A": 3, "B": 7}', '{"A": NaN, "B": 3}', '{"A": Infinity, "B": 1}',
    '{"A": 1e999, "B": 3}', '{"A": 99999999999999999999999, "B": 3}', '{"A": -1, "B": 2}',
    '{"A": 11, "B": 2}', '{"A": "7", "B": 3}', '{"A": 7}', '{"A": 7, "B": 3, "C": 1}',
    '{"A": 7, "A": 1, "B": 3}', '{"A": true, "B": 1}', '{"A": [1], "B": 1}', "{", "}", "[", "]",
    '{"score": 7.5}', '{"score": null}', " ", "\n", "\x00", "\u202e", "а Б 判 \U0001f600", "text ",
    "Sure, here is the text:", "I cannot help with that.", "As an AI language model,", "A fits.",
    "\ud800", "e\u0301", "<answer", "</ answer>", "<THINK>", "&lt;answer&gt;",
)  # fmt: skip
TEXT = "The old man walked to the river, and he sat down there to think about 1996."


def _outputs(count: int) -> list[str]:
    rng = random.Random(7)
    found = []
    for number in range(count):
        if number % 8 == 1:  # the same without reasoning
            found.append(f"<answer>{rng.choice(PIECES)}</answer>{rng.choice(('', ' ', 'x'))}")
            continue
        if number % 4 == 0:  # near the grammar: one right answer with something done to it
            parts = ["<think>", "text ", "</think>", "<answer>", rng.choice(PIECES), "</answer>"]
            for _ in range(rng.randrange(3)):
                parts.insert(rng.randrange(len(parts) + 1), rng.choice(PIECES))
            if rng.random() < 0.3:
                del parts[rng.randrange(len(parts))]
        else:
            parts = rng.choices(PIECES, k=rng.randrange(12))
        found.append("".join(parts))
    return found


OUTPUTS = [
    *_outputs(10_000),
    "x" * 1_000_000,
    "<answer>" * 100_000,
    "<think>" * 100_000 + "</think>" * 100_000,
    "<think></think><answer>" + "[" * 100_000 + "</answer>",
    "<think></think><answer>" + '{"A":' * 10_000 + "</answer>",
    "<think>" + "a " * 300_000 + '</think><answer>{"A": 1, "B": 2}</answer>',
    "<think></think><answer>" + "9" * 100_000 + "</answer>",
]


def _read_by_hand(output: str) -> str | None:
    """Who wins, by a reading of the grammar that is not the parser's."""
    if [output.count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")] != [1] * 4:
        return None
    whole = re.split(r"<think>|</think>|<answer>|</answer>", output)
    places = [output.index(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")]
    if places != sorted(places) or any(whole[i].strip() for i in (0, 2, 4)):
        return None
    try:
        names: list[str] = []
        scores = json.loads(
            whole[3], object_pairs_hook=lambda f: names.extend(n for n, _ in f) or dict(f)
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(scores, dict) or sorted(names) != ["A", "B"]:
        return None
    values = [scores[name] for name in ("A", "B")]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    if any(math.isnan(v) or not 0 <= v <= 10 for v in values):
        return None
    return "tie" if values[0] == values[1] else "A" if values[0] > values[1] else "B"


def test_scores_are_read_or_refused() -> None:
    verdicts = set()
    for output in OUTPUTS:
        judgement = parse_judgement(output, PromptConfig())
        verdict = None if judgement is None else judgement.verdict
        assert verdict == _read_by_hand(output), output[:300]
        verdicts.add(verdict)
    assert verdicts == {"A", "B", None}


@pytest.mark.parametrize("answer", ["verdict", "score"])
@pytest.mark.parametrize("think", [True, False])
def test_other_answers_are_read_or_refused(answer: str, think: bool) -> None:
    form = {"verdict": r"\[\[[AB]\]\]", "score": r'\{"score": 7.5\}'}[answer]
    reasoning = r"<think>.*</think>\s*" if think else ""
    grammar = re.compile(rf"\s*{reasoning}<answer>\s*{form}\s*</answer>\s*", re.DOTALL)
    read = 0
    for output in OUTPUTS:
        judgement = parse_judgement(output, PromptConfig(answer=answer, think=think))
        if judgement is not None:
            assert grammar.fullmatch(output), output[:300]
            assert output.count("<answer>") == 1 and output.count("<think>") == think
            read += 1
    assert read >= 10


def test_the_verifier_never_fails() -> None:
    faults = set()
    for output in OUTPUTS:
        for kind in ("mimic", "random", "minor"):
            fault = find_fault(kind, TEXT, output, VerifyConfig())
            faults.add((fault or "").split(":")[0])
            if kind == "minor":
                assert fault is not None, output[:300]
            elif fault is None:
                words = len(re.findall(r"\w+", output))
                assert 16 / 1.5 <= words <= 16 * 1.5 and "<think>" not in output
    assert {"too short", "preamble", "refusal", "markup", "length", "not minor"} <= faults
