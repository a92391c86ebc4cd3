"""Text to token ids and back: chat prompts, plain text, and small tokenizers trained from scratch.

Exemplars and candidates are other people's words, so no text that passes through here can write a
control token: only the chat template can.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

# transformers says on import that it finds no PyTorch, which we do not use.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
from transformers import PreTrainedTokenizerFast  # noqa: E402
from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: E402

from persrm_jax.jsonl import write_text

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MIN_VOCAB_SIZE = 256 + 3  # the bytes and the control tokens


class Tokenizer:
    """A transformers fast tokenizer with a chat template.

    Attributes:
        vocab_size: Number of ids, added tokens included.
        end_ids: Ids that end a turn: the tokenizer's own, and those of the generation config.
        end_id: The tokenizer's own end-of-turn id: what a response in training ends with.
        pad_id: An id for masked positions, never one of `end_ids`.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, end_ids: Iterable[int] = ()) -> None:
        """Wraps `fast`; `end_ids` adds to its own end token.

        Raises:
            ValueError: no chat template, no end token, or an end token that is not special and so
                could be written by any text.
        """
        if not fast.chat_template:
            raise ValueError("the tokenizer has no chat template")
        self.end_ids: tuple[int, ...] = tuple(sorted({*end_ids, fast.eos_token_id} - {None}))
        if not self.end_ids:
            raise ValueError("the tokenizer has no end token")
        special = {i: t.content for i, t in fast.added_tokens_decoder.items() if t.special}
        if plain := [i for i in self.end_ids if i not in special]:
            raise ValueError(f"the end id {plain[0]} is not a special token of the tokenizer")
        self.end_id: int = self.end_ids[0] if fast.eos_token_id is None else fast.eos_token_id
        self.vocab_size: int = len(fast)
        self.pad_id: int = _choose_pad(fast, special, self.end_ids)
        self._fast: Any = fast  # transformers annotates the union of all its modes
        self._special = {text: i for i, text in special.items()}
        longest_first = sorted(self._special, key=len, reverse=True)  # as the tokenizer matches
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode_chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[int]:
        """A chat's ids, up to where the assistant's next answer begins.

        `options` go to the template: Qwen3's takes `enable_thinking`.

        Equal to transformers' `apply_chat_template`, save where a message contains the text of a
        special token: there that text is encoded letter by letter.
        """
        mark = _unused_word(f"{self._fast.chat_template} {messages}")
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"{mark}{len(hidden) - 1}e"

        # The template sees the message with a mark for each special text, not a placeholder for
        # the whole message, because templates strip and split what they are given.
        marked = [{k: self._pattern.sub(hide, v) for k, v in m.items()} for m in messages]
        text = self._fast.apply_chat_template(
            marked, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )
        pieces = self._pattern.split(text)  # text, special, text, ..., special, text
        if not hidden:
            ids = self._fast(text, add_special_tokens=False)["input_ids"]
            # A normalizer could turn other text into a special token, which the pattern misses.
            special_ids = set(self._special.values())
            if sum(i in special_ids for i in ids) == len(pieces) // 2:
                return ids
        ids = []
        for piece in pieces:
            if piece in self._special:
                ids.append(self._special[piece])
            else:
                ids += self.encode(re.sub(f"{mark}([0-9]+)e", lambda m: hidden[int(m[1])], piece))
        return ids

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone; the text of a special token is encoded letter by letter."""
        return self._fast(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids` without special tokens."""
        row = np.asarray(ids).tolist()
        return self._fast.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token_bytes(self) -> list[bytes]:
        """What each id spells; special tokens spell nothing."""
        added = self._fast.added_tokens_decoder
        special = {*self._special.values()}
        by_bytes = isinstance(self._fast.backend_tokenizer.decoder, decoders.ByteLevel)
        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}

        def spelling(i: int, token: str) -> bytes:
            if i in special:
                return b""
            if i in added or not by_bytes:
                return self._fast.decode([i]).encode() if i not in added else token.encode()
            return bytes(byte_of[letter] for letter in token)

        tokens = self._fast.convert_ids_to_tokens(list(range(self.vocab_size)))
        return [spelling(i, token) for i, token in enumerate(tokens)]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads the tokenizer of a Hugging Face model folder; runs no code from it.

        Raises:
            ValueError: no tokenizer there, or one that we cannot use; it names the folder.
        """
        if not (folder / "tokenizer.json").is_file():
            raise ValueError(f"{folder}: no tokenizer here (no tokenizer.json)")
        try:
            # Not AutoTokenizer: from some model types it builds a class's own pipeline and leaves
            # that of tokenizer.json aside.
            fast: Any = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            end_ids = _generation_config(folder).get("eos_token_id", [])
            return cls(fast, end_ids if isinstance(end_ids, list) else [end_ids])
        except Exception as error:  # the Rust side raises plain Exception for a broken file
            raise ValueError(f"{folder}: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes what `load` reads, beside a model or alone."""
        folder.mkdir(parents=True, exist_ok=True)
        self._fast.save_pretrained(str(folder))
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # The name that transformers 4 and vLLM know too, without traces of where it was loaded.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config = {k: v for k, v in config.items() if k not in ("is_local", "local_files_only")}
        write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        generation = _generation_config(folder) | {"eos_token_id": list(self.end_ids)}
        write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE with single digits and ChatML turns; the same texts, the same ids.

    The vocabulary is smaller than `vocab_size` where the texts have no more pairs to merge.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size must be at least {MIN_VOCAB_SIZE}: {vocab_size}")
    backend = BackendTokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        chat_template=CHATML_TEMPLATE,
    )
    return Tokenizer(fast)


def byte_tokenizer() -> Tokenizer:
    """One id a byte and the three ChatML tokens."""
    return train_tokenizer((), MIN_VOCAB_SIZE)


def _choose_pad(fast: Any, special: dict[int, str], end_ids: tuple[int, ...]) -> int:
    """The tokenizer's pad, or where that is an end token the special token least in use."""
    if fast.pad_token_id is not None and fast.pad_token_id not in end_ids:
        return fast.pad_token_id
    template = str(fast.chat_template)
    spare = sorted((text in template, i) for i, text in special.items() if i not in end_ids)
    return spare[0][1] if spare else next(i for i in range(len(fast)) if i not in end_ids)


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _unused_word(text: str) -> str:
    """A word that `text` does not contain."""
    return next(word for n in count() if (word := f"hidden{n}n") not in text)
