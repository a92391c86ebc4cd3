"""Log-likelihood of each candidate after the person's texts: what a language model knows of a style
before it is taught to judge.

The model reads plain text, no chat: each exemplar after a blank line, then where the pair has one
the prompt that the candidates answer, after a blank line too, then a blank line and the candidate:

    "\\n\\n" exemplar 1 "\\n\\n" exemplar 2 ... "\\n\\n" prompt "\\n\\n" candidate

The blank line comes first, too, so that without exemplars the candidate's first token still follows
something, and always the same. Only the candidate's tokens count.

`likelihood` is their mean log-probability, in nats a token. A sum would prefer the shorter text
whoever wrote it, since every further token lowers it; the mean is fair to length, and favours texts
that are easy to foretell whoever wrote them. `likelihood_gain` answers that: the mean less the same
candidate's mean without the exemplars, which is the pointwise mutual information of candidate and
exemplars a token. Its sum would grow with length where exemplars help at all, as the same topic or
plain repetition does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.special import expit

from persrm_jax.data.batches import Row, sft_batch
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.distributed import place
from persrm_jax.evaluation.judge import EvalConfig, JudgePairs
from persrm_jax.evaluation.scalar import in_batches, in_both_orders
from persrm_jax.models.config import ComputeConfig, ModelConfig
from persrm_jax.models.logprobs import token_logprobs
from persrm_jax.models.params import Params
from persrm_jax.sharding import batch_sharding
from persrm_jax.tokenizer import Tokenizer
from persrm_jax.types import Batch, Pair, Prediction

BLANK_LINE = "\n\n"


def make_likelihood(
    model: ModelConfig,
    cfg: EvalConfig,
    *,
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    compute: ComputeConfig,
    seed: int,
    mesh: Mesh,
    is_gain: bool = False,
    advance: Callable[[int], object] = lambda done: None,
) -> JudgePairs:
    """Returns judge(params, pairs, condition, label) -> predictions by log-likelihood. Scores are
    10 p, p the geometric mean of the tokens' probabilities; of a gain g, 10 sigmoid(g).

    Args:
        prompt: of it, `max_tokens` bounds a text with its exemplars.
        is_gain: takes off what the candidate's likelihood is without exemplars; a pair without
            exemplars is then a tie.
        advance: told after each batch how many candidates it held; each counts twice for a gain.
    """
    score = jax.jit(partial(_mean_logprobs, model, compute))
    sharding = batch_sharding(mesh)

    def mean_logprobs(params: Params, rows: Sequence[Row]) -> np.ndarray:
        def batch(chosen: list[int], length: int) -> Batch:
            return sft_batch([rows[i] for i in chosen], tokenizer.pad_id, length)

        def of_batch(inputs: Any) -> jax.Array:
            return score(params, place(inputs, sharding))

        lengths = [len(context) + len(text) for context, text in rows]
        found = in_batches(lengths, batch, of_batch, cfg.batch_size, advance)
        return found.reshape(-1, 2)

    def judge(
        params: Params, pairs: Sequence[Pair], condition: str, label: str
    ) -> list[Prediction]:
        values = mean_logprobs(params, encode_candidates(pairs, tokenizer, prompt))
        scores = 10 * np.exp(values)
        if is_gain:
            bare = encode_candidates(pairs, tokenizer, prompt, with_exemplars=False)
            # Batches of other lengths round otherwise: no exemplars, no gain, to the last bit.
            is_shown = np.array([[bool(pair.exemplars)] for pair in pairs])
            values = np.where(is_shown, values - mean_logprobs(params, bare), 0.0)
            scores = 10 * expit(values)
        return in_both_orders(pairs, values, scores, condition=condition, label=label, seed=seed)

    return judge


def encode_candidates(
    pairs: Sequence[Pair],
    tokenizer: Tokenizer,
    cfg: PromptConfig,
    *,
    with_exemplars: bool = True,
) -> list[Row]:
    """(ids of what comes before, ids of the candidate) of each pair's chosen and rejected text.
    Candidates are encoded by themselves, so that the same text is the same tokens after anything.

    Raises:
        ValueError: a text with its exemplars is longer than `cfg.max_tokens`.
    """
    rows = []
    for pair in pairs:
        shown = (*(pair.exemplars if with_exemplars else ()), pair.prompt)
        context = "".join(BLANK_LINE + text for text in shown if text)
        before = tokenizer.encode(context + BLANK_LINE)
        for text in (pair.chosen, pair.rejected):
            ids = tokenizer.encode(text)
            if len(before) + len(ids) > cfg.max_tokens:
                raise ValueError(
                    f"pair {pair.pair_id}: a candidate after its exemplars takes "
                    f"{len(before) + len(ids)} tokens and --prompt.max-tokens is {cfg.max_tokens}; "
                    "lower --pairs.num-exemplars or --corpus.max-words"
                )
            rows.append((before, ids))
    return rows


def _mean_logprobs(
    model: ModelConfig, compute: ComputeConfig, params: Params, batch: Batch
) -> jax.Array:
    """[B] means over the tokens that carry loss."""
    logprobs, _ = token_logprobs(params, model, batch, compute)
    mask = batch.loss_mask[:, 1:]
    return jnp.sum(jnp.where(mask, logprobs, 0.0), axis=1) / jnp.sum(mask, axis=1)
