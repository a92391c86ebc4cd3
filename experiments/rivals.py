"""RFT's honest rivals: what SFT makes of as much compute.

`--continue-sft`: more steps on the same traces. `--rejection-sft`: steps on the SFT model's own
right answers to the questions that RFT would ask (rejection sampling fine-tuning, arXiv
2308.01825).
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
from jax.sharding import Mesh

from experiments.presets import RunConfig
from experiments.sft import sft_feed
from experiments.synthesize import load_pairs, load_traces
from persrm_jax.data.batches import batch_indices, bucketed, encode_pairs
from persrm_jax.data.prompts import judge_messages, questions
from persrm_jax.distributed import on_main
from persrm_jax.jsonl import read_records, write_records
from persrm_jax.models.load import Model
from persrm_jax.rl.rewards import credit
from persrm_jax.rl.rollout import judge_ending, judge_rollout, roll_out
from persrm_jax.runs import RunFolder
from persrm_jax.sampling import make_generate
from persrm_jax.training.rft_config import needs_reference
from persrm_jax.training.sft import SftConfig
from persrm_jax.types import Pair, Trace


def continued_sft(cfg: RunConfig, run: RunFolder, start: Model) -> SftConfig:
    """SFT's config for the rival: the same optimizer, for as much compute as RFT."""
    passes = rft_passes(cfg, _longest(load_pairs(run.path, "train"), start, cfg))
    return _sft_of(cfg, run, passes, load_traces(run.path), start)


def rejection_sft(
    cfg: RunConfig, run: RunFolder, start: Model, mesh: Mesh
) -> tuple[SftConfig, list[Trace]]:
    """SFT's config for what is left of RFT's compute after answers are drawn, and those that are
    right, each once; they are kept in `RUN/sft_rejection/traces.jsonl`.

    Raises:
        ValueError: none is right.
    """
    pairs = load_pairs(run.path, "train")
    length = _longest(pairs, start, cfg)
    path = run.path / "sft_rejection" / "traces.jsonl"
    if not path.is_file():
        right = _right_answers(cfg, pairs, start, mesh, length)
        on_main(lambda: write_records(path, right))
    traces = read_records(path, Trace)
    if not traces:
        raise ValueError(
            "--rejection-sft: none of the SFT model's answers to RFT's questions is right"
        )
    passes = rft_passes(cfg, length) - cfg.rft.steps * _sampling_passes(cfg, length)
    return _sft_of(cfg, run, passes, traces, start), traces


def rft_passes(cfg: RunConfig, prompt_length: int) -> int:
    """What RFT costs in token passes: a forward is one, a backward two.

    Prefill once a group, decode, forward for the reference and for the old policy, forward and
    backward. Padding counts, since it is computed; a prompt that a group shares counts once. (With
    --rft.pack-length RFT computes less padding than is counted here, in the rival's favour.)
    """
    passes = 3 * cfg.rft.epochs + needs_reference(cfg.rft, cfg.loss) + (cfg.rft.updates_a_step > 1)
    group = cfg.rft.group_size * cfg.rft.sampling.max_new_tokens
    shares = 1 if cfg.rft.shared_prefix else cfg.rft.group_size
    trained = cfg.rft.prompts * passes * (shares * prompt_length + group)
    return cfg.rft.steps * (_sampling_passes(cfg, prompt_length) + trained)


def _sampling_passes(cfg: RunConfig, prompt_length: int) -> int:
    """Of a step's rollout: prefill and decode."""
    group = cfg.rft.group_size * cfg.rft.sampling.max_new_tokens
    return cfg.rft.prompts * (prompt_length + group)


def _sft_of(
    cfg: RunConfig, run: RunFolder, passes: int, traces: Sequence[Trace], start: Model
) -> SftConfig:
    row_length = sft_feed(cfg, run, start.tokenizer, traces, cfg.sft, cfg.seed).row_length
    steps = max(round(passes / (3 * cfg.sft.batch_size * row_length)), 1)
    return replace(cfg.sft, steps=steps, stop_accuracy=2.0, patience=0)


def _longest(pairs: Sequence[Pair], start: Model, cfg: RunConfig) -> int:
    """To which RFT's prompts are padded."""
    prompts = encode_pairs(pairs, [p.order for p in pairs], start.tokenizer, cfg.prompt)
    return bucketed(max(map(len, prompts)))


def _right_answers(
    cfg: RunConfig, pairs: Sequence[Pair], start: Model, mesh: Mesh, length: int
) -> list[Trace]:
    """Those among as many answers to as many questions as RFT draws, each text once a question."""
    sampling = cfg.rft.sampling
    generate = make_generate(
        start.config,
        sampling,
        judge_ending(sampling, start.tokenizer, cfg.prompt),
        num_samples=cfg.rft.group_size,
        compute=cfg.compute,
    )
    key = jax.random.fold_in(jax.random.key(cfg.seed), 12)
    found: dict[tuple[str, str, str], Trace] = {}
    for step in range(cfg.rft.steps):
        count = cfg.rft.prompts // cfg.prompt.questions_a_pair
        chosen = [pairs[i] for i in batch_indices(len(pairs), count, step, cfg.seed).tolist()]
        ((asked, rollout),) = roll_out(
            start.params,
            generate,
            questions(chosen, cfg.prompt),
            cfg.rft.group_size,
            jax.random.fold_in(key, step),
            tokenizer=start.tokenizer,
            prompt=cfg.prompt,
            prompt_length=length,
            mesh=mesh,
        )
        judged = judge_rollout(
            rollout,
            asked,
            tokenizer=start.tokenizer,
            prompt=cfg.prompt,
            reward=cfg.rft.reward,
        )
        for record in judged.records:
            if credit(record) == 1:
                assert record.judgement is not None
                found[record.pair.pair_id, record.order, record.text] = Trace(
                    record.pair.pair_id,
                    record.order,
                    judge_messages(record.pair, record.order, cfg.prompt),
                    record.text,
                    teacher="sft",
                    verdict=record.judgement.verdict or "A",
                )
    return list(found.values())
