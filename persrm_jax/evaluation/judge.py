"""A model's verdicts on pairs, in both orders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from persrm_jax.data.batches import encode_pairs
from persrm_jax.data.prompts import (
    BOTH_ORDERS,
    Judgement,
    PromptConfig,
    compare,
    parse_judgement,
)
from persrm_jax.evaluation.ask import Reply, make_ask, plan_batches
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.params import Params
from persrm_jax.sampling import SamplingConfig, sequence_keys
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Order, Pair, Prediction


@dataclass(frozen=True)
class EvalConfig:
    """How a model is asked."""

    batch_size: int = 32
    """Judgements at a time."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.0)
    """Greedy by default."""
    max_pairs: int = 0
    """Evaluate only the first so many pairs (0: all)."""
    max_dev_pairs: int = 64
    """Pairs of dev authors for the evaluations during training."""
    exemplars: tuple[int, ...] = ()
    """Numbers of exemplars to show beside the pairs' own number: 0, or more of the author's."""
    samples: int = 0
    """Also draw so many answers to each question, for votes and mean scores (0: none)."""
    sample_temperature: float = 0.7
    """Of those answers."""
    dev: bool = False
    """Score all pairs of dev authors too after training: what a choice between runs may look at."""

    def __post_init__(self) -> None:
        if self.exemplars and min(self.exemplars) < 0:
            raise ValueError(f"--eval.exemplars {min(self.exemplars)}: must be 0 or more")
        if self.samples < 0:
            raise ValueError(f"--eval.samples {self.samples}: must be 0 or more")
        if self.sample_temperature <= 0:
            raise ValueError(
                f"--eval.sample-temperature {self.sample_temperature}: must be above 0"
            )


JudgePairs = Callable[[Params, Sequence[Pair], str, str], list[Prediction]]


def make_judge(
    model: ModelConfig,
    cfg: EvalConfig,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    compute: ComputeConfig,
    seed: int,
    mesh: Mesh,
    samples: int = 0,
    advance: Callable[[int], object] = lambda done: None,
) -> JudgePairs:
    """Returns judge(params, pairs, condition, label) -> predictions, each pair in both orders.

    Args:
        samples: answers that are drawn to each question; 0: one, as `cfg.sampling` has it.
        advance: told after each batch how many judgements it held.
    """
    sampling = cfg.sampling
    if samples:
        sampling = replace(sampling, temperature=cfg.sample_temperature)
    ask = make_ask(
        model,
        sampling,
        batch_size=cfg.batch_size,
        tokenizer=tokenizer,
        prompt=prompt,
        compute=compute,
        mesh=mesh,
    )

    def judge(
        params: Params, pairs: Sequence[Pair], condition: str, label: str
    ) -> list[Prediction]:
        turns = max(samples, 1)
        asked = [(pair, order) for pair in pairs for order in BOTH_ORDERS]
        prompts = encode_pairs([p for p, _ in asked], [o for _, o in asked], tokenizer, prompt)
        asked, prompts = asked * turns, prompts * turns
        keys = sequence_keys(jax.random.key(seed, impl="threefry2x32"), len(asked))
        data = np.asarray(jax.random.key_data(keys))
        answers: dict[int, Reply] = {}
        shown = [(pair.exemplars, pair.prompt) for pair, _ in asked]
        for batch in plan_batches(
            prompts, shown, cfg.batch_size, sampling.max_new_tokens, mesh.shape["data"]
        ):
            rows = batch.rows
            chosen = [prompts[i] for i in rows]
            found = ask(params, chosen, data[rows], batch.length, batch.shared)
            answers |= zip(rows, found, strict=True)
            advance(len(rows))
        parsed = [parse_judgement(answers[i].text, prompt) for i in range(len(asked))]
        if prompt.answer == "score":  # an order's neighbour shows the pair's other text
            parsed = [compare(parsed[i], parsed[i ^ 1]) for i in range(len(asked))]
        return [
            _predict(judgement, *answers[i], *asked[i], i // (2 * len(pairs)), condition, label)
            for i, judgement in enumerate(parsed)
        ]

    def _predict(
        judgement: Judgement | None,
        text: str,
        length: int,
        pair: Pair,
        order: Order,
        sample: int,
        condition: str,
        label: str,
    ) -> Prediction:
        return Prediction(
            pair_id=pair.pair_id,
            order=order,
            condition=condition,
            model=label,
            seed=seed,
            sample=sample,
            score_a=judgement.score_a if judgement else None,
            score_b=judgement.score_b if judgement else None,
            verdict=judgement.verdict if judgement else None,
            parsed=judgement is not None,
            tokens=length,
            completion=text,
        )

    return judge
