"""TRL's GRPOTrainer on torch for CPUs: generation by transformers, gradient checkpointing off."""

import sys
import tempfile

import torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers import workload as w
from benchmarks.peers.turns import Turns

MAX_STEPS = 1000
"""More than there are turns."""


def main(name: str) -> None:
    """Takes turns at steps of workload `name`."""
    size = w.WORKLOADS[name]
    turns = Turns()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=w.VOCAB_SIZE,
            hidden_size=w.WIDTH,
            intermediate_size=w.MLP_WIDTH,
            num_hidden_layers=w.NUM_LAYERS,
            num_attention_heads=w.NUM_HEADS,
            num_key_value_heads=w.NUM_KV_HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=w.END_ID,
            pad_token_id=w.PAD_ID,
        )
    )

    class TakeTurns(TrainerCallback):
        """A step for each turn."""

        def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if not turns.begin():
                sys.exit(0)

        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            turns.end()

    def reward(completion_ids: list[list[int]], **kwargs: object) -> list[float]:
        turns.rolled_out()
        if {len(ids) for ids in completion_ids} != {size.new_tokens}:
            raise ValueError("a completion ended early")
        return w.share_even(completion_ids)

    rows = [{"prompt": p} for i in range(MAX_STEPS // 10) for p in w.make_prompts(size, i)]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=size.prompts * size.group_size,
            num_generations=size.group_size,
            max_completion_length=size.new_tokens,
            generation_kwargs={"min_new_tokens": size.new_tokens},
            temperature=1.0,
            top_k=0,
            beta=0.0,
            learning_rate=w.LEARNING_RATE,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            max_steps=MAX_STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            processing_class=w.make_tokenizer(),
            callbacks=[TakeTurns()],
        ).train()


if __name__ == "__main__":
    main(sys.argv[1])
