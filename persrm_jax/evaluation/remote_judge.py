"""Verdicts of a model behind an OpenAI-compatible endpoint, asked as ours are.

It reads the same prompt, and the same parser reads its answer. An endpoint that takes a model's
reasoning out of its answers is asked without (`--prompt.think False`), or none of them would parse.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from persrm_jax.data.answers import Answer, Answers
from persrm_jax.data.openai_writer import OpenAIConfig, OpenAIWriter
from persrm_jax.data.prompts import (
    BOTH_ORDERS,
    Judgement,
    PromptConfig,
    compare,
    judge_messages,
    parse_judgement,
)
from persrm_jax.data.writers import Request
from persrm_jax.types import Order, Pair, Prediction

ENDPOINT = OpenAIConfig(temperature=0.0, max_tokens=4096)
"""How a judge is asked where nothing else is said: greedily."""
RemoteJudge = Callable[[Sequence[Pair], str, str], list[Prediction]]


def make_remote_judge(
    cfg: OpenAIConfig,
    answers: Answers,
    *,
    prompt: PromptConfig,
    advance: Callable[[int], object] = lambda done: None,
) -> RemoteJudge:
    """Returns judge(pairs, condition, label) -> predictions, each pair in both orders.

    Answers are kept as they come and found again by what was asked: a run that was cut off, or
    another condition that asks the same, pays for nothing twice. What an endpoint refuses to answer
    or cuts off is unparsed, and so wrong.

    Args:
        answers: the caller's, who closes them; `cfg.cost` of `answers.tokens` is what it has cost.
        advance: told of each answer that is there.

    Raises:
        ValueError: as `OpenAIWriter`; or, of the judge, questions that nobody answered.
    """
    writer = OpenAIWriter(cfg, "--openai")
    label_of_writer = f"openai:{cfg.model}"
    under = answers.settings(cfg.base_url, cfg.model, cfg.temperature, cfg.max_tokens, prompt)

    def ask(requests: Mapping[str, Request]) -> dict[str, Answer]:
        """The answer to each key's request."""
        found, todo = {}, []
        for key, request in requests.items():
            known = answers.find(key, 0)
            if known is None:
                todo.append(request)
            else:
                found[key] = known
                advance(1)
        lost = ""
        for request, written in zip(todo, writer(todo), strict=True):
            if written.is_lost:
                answers.lose(written.fault)
                lost = written.fault
                continue
            spent = (written.prompt_tokens, written.completion_tokens)
            text = written.text or ""
            answer = Answer(request.key, 0, "verdict", label_of_writer, text, written.fault, *spent)
            answers.add(answer)
            found[request.key] = answer
            advance(1)
        if lost:
            raise ValueError(
                f"{len(requests) - len(found)} of {len(requests)} judgements were not answered "
                f"({lost}): what was answered is kept, and the same command asks for the rest"
            )
        return found

    def judge(pairs: Sequence[Pair], condition: str, label: str) -> list[Prediction]:
        asked = [(pair, order) for pair in pairs for order in BOTH_ORDERS]
        requests = [_request(pair, order, prompt, under) for pair, order in asked]
        found = ask({request.key: request for request in requests})
        given = [found[request.key] for request in requests]
        parsed = [parse_judgement(answer.text, prompt) for answer in given]
        if prompt.answer == "score":  # an order's neighbour shows the pair's other text
            parsed = [compare(parsed[i], parsed[i ^ 1]) for i in range(len(asked))]
        return [
            _predict(*question, judgement, answer, condition=condition, model=label)
            for question, judgement, answer in zip(asked, parsed, given, strict=True)
        ]

    return judge


def _request(pair: Pair, order: Order, prompt: PromptConfig, under: str) -> Request:
    """The same words are the same question, of whichever pair or condition."""
    messages = judge_messages(pair, order, prompt)
    said = "\n".join(message["content"] for message in messages).encode()
    return Request(f"{under}|{hashlib.blake2b(said, digest_size=12).hexdigest()}", messages)


def _predict(
    pair: Pair, order: Order, judgement: Judgement | None, answer: Answer, **named: Any
) -> Prediction:
    return Prediction(
        pair_id=pair.pair_id,
        order=order,
        seed=0,
        sample=0,
        score_a=judgement.score_a if judgement else None,
        score_b=judgement.score_b if judgement else None,
        verdict=judgement.verdict if judgement else None,
        parsed=judgement is not None,
        tokens=answer.completion_tokens,
        completion=answer.text,
        **named,
    )
