"""What TensorBoard makes of a rollout's Markdown, by its own converter."""

from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.plugin_util import markdown_to_safe_html

from persrm_jax.data.prompts import Judgement, PromptConfig
from persrm_jax.rl.rewards import CompletionRecord
from persrm_jax.rl.rollout import JudgedRollout
from persrm_jax.training.rollout_text import describe, quoted
from persrm_jax.types import Groups, Order, Pair, Rollout

PAIR = Pair(
    "p0", "ann", "train", "d", "", ("hey", "well *then*"), ("1", "2"), "mine", "3", "theirs", "4",
    "bob", "other_author", "BA", "human", 0,
)  # fmt: skip
NASTY = [
    "<script>alert(1)</script>",
    "</blockquote><h1>x</h1>",
    "# heading\n## second",
    "```\ncode\n```",
    "~~~~\ncode",
    "    indented\n\tby a tab",
    "1. one\n2. two\n- three\n* four",
    "a\n===\nb\n---",
    "| a | b |\n| --- | --- |\n| 1 | 2 |",
    "![x](http://example.org/x.png) [y](javascript:alert) [z]: http://example.org",
    "&lt;b&gt; &amp; &#60; **bold** __bold__ `code` \\* \\",
    "> quote\n\n\nafter",
    "<!-- \n comment",
    "\x02klzzwxh:0000\x03 \x00 \x1b[31m",
    "line\rline\r\nline\x0bline\u2028line",
]


class _Read(HTMLParser):
    """Texts and tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[str]()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def _words(text: str) -> str:
    """A text without its spaces, and with what cannot be seen as the sign that stands for it."""
    return "".join("\ufffd" if x < " " or x == "\x7f" else x for x in text if not x.isspace())


def _check(text: str) -> None:
    page = _Read(markdown_to_safe_html(quoted(text)))
    assert set(page.tags) <= {"blockquote", "p", "br"}, page.tags
    assert "".join(page.text.split()) == _words(text)


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    _check(text)


@given(st.text(st.sampled_from("a1 .-*_`#>|<&;![](){}\\~=+:\n\t\"'/\x02\x03\u00e9"), max_size=40))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    _check(text)


def test_lines_and_their_indents_are_kept() -> None:
    assert quoted("a\n  b\n\nc") == "> a<br>&nbsp;&nbsp;b<br><br>c"


def _judged(
    texts: list[str],
    judgements: list[Judgement | None],
    rewards: list[float],
    order: Order = "BA",
    rivals: tuple[float, ...] = (),
) -> JudgedRollout:
    """One group."""
    G = len(texts)
    tokens, mask = np.zeros((1, G, 3), np.int32), np.ones((1, G, 3), bool)
    groups = Groups(np.zeros((1, 2), np.int32), np.ones((1, 2), bool), tokens, mask)
    records = [
        CompletionRecord(PAIR, order, text, found, 3, 3, found is None, rivals)
        for text, found in zip(texts, judgements, strict=True)
    ]
    rollout = Rollout(groups, np.zeros((1, G, 3), np.float32), np.zeros((1, G, 3), bool))
    found = np.array(rewards, np.float32)
    return JudgedRollout(rollout, records, {"correct": found, "own": found / 2}, found)


def test_a_group_is_described() -> None:
    judged = _judged(
        ["<think>first</think>", "second", "third"],
        [Judgement("A", 7.5, 3.0), Judgement("B", 1.0, 9.0), None],
        [-1.0, 1.0, -1.0],
    )
    page = _Read(markdown_to_safe_html(describe(judged, PromptConfig())))
    text = " ".join(page.text.split())
    for shown in (
        "Exemplar 1 hey Exemplar 2 well *then* A theirs B (the person's own) mine Completions",
        "1 7.5 3 A, wrong 3 -1.00 -0.50 -1.00",
        "2 1 9 B, right 3 +1.00 +0.50 +1.00",
        "3 - - not parsed 3 (cut off) -1.00 -0.50 -1.00",
        "Completion 2: B, right, reward +1.00 (correct +1.00, own +0.50) second",
        "Completion 1: A, wrong, reward -1.00 (correct -1.00, own -0.50) <think>first</think>",
    ):
        assert shown in text, shown
    assert "third" not in text
    assert page.tags.count("tr") == 4 and page.tags.count("h4") == 7


def test_a_group_whose_rewards_are_alike_shows_one_completion() -> None:
    for rewards in ([0.0, 0.0], [float("nan")] * 2):
        tie = Judgement("tie", 5.0, 5.0)
        text = describe(_judged(["one", "two"], [tie, tie], rewards), PromptConfig())
        assert "one" in text and "two" not in text and "tie" in text


def test_a_text_that_is_shown_alone_has_one_score() -> None:
    judged = _judged(["one"], [Judgement(None, 8.0)], [0.5], "AB", rivals=(7.0, 9.0))
    text = describe(judged, PromptConfig(answer="score"))
    assert "#### Candidate (the person's own)" in text and "theirs" not in text
    assert "| 1 | 8 | right about 50% of its rivals | 3 |" in text
