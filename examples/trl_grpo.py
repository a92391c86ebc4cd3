"""TRL's GRPOTrainer with a personalized judge as its reward: a policy learns to write like someone.

    python -m experiments.serve --run RUN --max-prompt-tokens 256          # here
    python examples/trl_grpo.py --exemplars LETTERS.jsonl                  # there; needs trl alone

TRL gives a reward function the columns of its data set, one value a completion; so each row carries
the exemplars of the person that the policy is to write like. The completions of one prompt are one
request: a pairwise judge compares them with each other.

Without --model the policy is a small one with random weights, which learns nothing worth reading in
its few steps and shows that all parts fit.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from persrm_client import score
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl import GRPOConfig, GRPOTrainer


def persrm_reward(
    prompts: list[str],
    completions: list[str],
    exemplars: list[list[str]],
    log_metric: Any = None,
    **_: Any,
) -> list[float | None]:
    """A score for each completion; None, which TRL leaves out, where no answer could be read."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, (prompt, texts) in enumerate(zip(prompts, exemplars, strict=True)):
        groups[prompt, *texts].append(i)
    rewards: list[float | None] = [None] * len(completions)
    for (prompt, *texts), members in groups.items():
        found = score(texts, [completions[i] for i in members], prompt)
        for i, got in zip(members, found, strict=True):
            rewards[i] = got["score"]
    if log_metric is not None:
        read = sum(reward is not None for reward in rewards)
        log_metric("persrm/read", read / len(rewards))
    return rewards


def random_policy() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A small decoder over bytes, with random weights."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate([*letters, "<pad>", "<end>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=len(vocab),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config), tokenizer


def main() -> None:
    """Trains."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--exemplars", type=Path, required=True, help="JSON Lines with `text`")
    flags.add_argument("--prompts", type=Path, help="JSON Lines with `prompt`")
    flags.add_argument("--model", help="a Hugging Face id or folder")
    flags.add_argument("--steps", type=int, default=4)
    flags.add_argument("--out", default="trl-grpo")
    asked = flags.parse_args()

    lines = asked.exemplars.read_text(encoding="utf-8").splitlines()
    exemplars = [json.loads(line)["text"] for line in lines if line.strip()]
    prompts = ["Write a note about a bike.", "Write a note about a roof."]
    if asked.prompts:
        prompts = [json.loads(line)["prompt"] for line in asked.prompts.open(encoding="utf-8")]
    if asked.model:
        policy = AutoModelForCausalLM.from_pretrained(asked.model)
        tokenizer = AutoTokenizer.from_pretrained(asked.model)
    else:
        policy, tokenizer = random_policy()
    rows = [{"prompt": prompt, "exemplars": exemplars} for prompt in prompts]
    GRPOTrainer(
        model=policy,
        processing_class=tokenizer,
        reward_funcs=persrm_reward,
        train_dataset=Dataset.from_list(rows),
        args=GRPOConfig(
            output_dir=asked.out,
            max_steps=asked.steps,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=24,
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=asked.model is None,
        ),
    ).train()


if __name__ == "__main__":
    main()
