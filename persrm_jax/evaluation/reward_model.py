"""A trained judge in use: exemplars and candidates -> scores.

judge = Judge.load("runs/tiny")
scores = judge.score(exemplars=["...", "..."], candidates=["...", "...", "..."])
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from persrm_jax.data.batches import common_start
from persrm_jax.data.prompts import Judgement, parse_judgement, question_messages, reasoning_of
from persrm_jax.evaluation.ask import KEY_WORDS, Ask, Reply, make_ask, padded
from persrm_jax.evaluation.tournament import draw_pairs
from persrm_jax.evaluation.trained import UseConfig, find_model, use_config
from persrm_jax.models.load import Model, load_pretrained
from persrm_jax.sharding import MeshShape, check_mesh, make_mesh

Kind = tuple[bool, int, tuple[int, ...]]
"""Of a question: drawn or not, to how many tokens it is padded, and what is read once for all."""


@dataclass(frozen=True)
class Request:
    """Candidates to score by how well they fit the person who wrote the exemplars."""

    exemplars: tuple[str, ...]
    candidates: tuple[str, ...]
    prompt: str = ""
    """What the candidates answer or continue, where that is known."""
    n: int = 1
    """Answers to each question."""
    name: str = ""
    """By which errors name it."""


@dataclass(frozen=True)
class Score:
    """What a candidate got. Answers that cannot be read give no score, nor a guess."""

    score: float | None
    """Mean of `samples`; None if there is none."""
    spread: float | None
    """Their standard deviation (of these numbers, ddof 0)."""
    samples: tuple[float | None, ...]
    """One a sample; None where none of its answers could be read."""
    reasoning: tuple[str, ...]
    """Of every answer about it."""
    parsed: int
    """Answers about it that could be read."""
    asked: int
    """Answers about it."""
    tokens: int
    """In them, reasoning included."""


@dataclass(frozen=True)
class Question:
    """A prompt about one or two of a request's candidates, and the number of its sample."""

    ids: tuple[int, ...]
    shown: tuple[int, ...]
    sample: int
    drawn: bool
    """Whether the answer is drawn, not greedy."""
    shared: int = 0
    """The prompt's first tokens that are read once for the whole batch."""

    @property
    def kind(self) -> Kind:
        """Questions of one kind can share a batch."""
        return self.drawn, padded(len(self.ids) - self.shared), self.ids[: self.shared]


class Judge:
    """A model that scores any number of candidates.

    A pointwise model (`--prompt.answer score`) is shown each candidate alone. A pairwise one is
    shown a tournament: with at most `opponents` + 1 candidates all pairs, with more a seeded
    choice in which each candidate meets `opponents` others (see `draw_pairs`), every pair in both
    orders. A candidate's score is then the mean of the scores that it got, in [0, 10]; where the
    model names the better one (`verdict`), the share of its wins, in [0, 1].

    With n = 1 the answers are greedy; with more they are drawn with keys that depend on the seed,
    the prompt and the sample's number alone. So a score does not depend on what else is asked at
    the time, and asking again gives it again.
    """

    def __init__(self, model: Model, cfg: UseConfig, mesh: Mesh) -> None:
        """Compiles nothing yet.

        Raises:
            ValueError: prompts and answers longer than the model's context, or a mesh that does
                not divide the model's heads or a batch.
        """
        shape = MeshShape(mesh.shape["data"], mesh.shape["model"])
        check_mesh(shape, model.config.num_heads, {"--batch-size": cfg.batch_size})
        longest = max(cfg.sampling.max_new_tokens, cfg.many.max_new_tokens)
        if cfg.prompt.max_tokens + longest > model.config.max_positions:
            raise ValueError(
                f"--prompt.max-tokens {cfg.prompt.max_tokens} and answers of {longest} exceed the "
                f"model's context of {model.config.max_positions} tokens"
            )
        self.model, self.cfg, self.mesh = model, cfg, mesh
        make = partial(
            make_ask,
            model.config,
            batch_size=cfg.batch_size,
            tokenizer=model.tokenizer,
            prompt=cfg.prompt,
            compute=cfg.compute,
            mesh=mesh,
        )
        self._ask: dict[bool, Ask] = {False: make(cfg.sampling), True: make(cfg.many)}

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        mesh: Mesh | None = None,
        stage: str | None = None,
        cfg: UseConfig | None = None,
    ) -> "Judge":
        """The judge that a run trained, or a saved or Hugging Face model.

        Args:
            path: a run's folder, a model's folder, a hub id, or `smollm2`.
            mesh: one device where none is given.
            stage: whose model of a run; without it that of RFT, or of SFT where there is no other.
            cfg: without it as the run was trained, or the defaults of a model without a run.

        Raises:
            ValueError: no finished stage of training in the run, no such model, or one whose
                tokenizer has no chat template.
        """
        source = find_model(path, stage)
        cfg = cfg if cfg is not None else use_config(path)
        mesh = mesh if mesh is not None else make_mesh(MeshShape(1, 1))
        with jax.set_mesh(mesh):
            model = load_pretrained(source, mesh, cfg.compute.param_dtype)
        return cls(model, cfg, mesh)

    def fitted(self, requests: Sequence[Request]) -> "Judge":
        """This judge for these requests alone: its batches have no more rows than they fill. (A
        judge that is asked again and again keeps one size, and compiles it once.)"""
        rows = sum(self.num_questions(len(request.candidates), request.n) for request in requests)
        devices = self.mesh.shape["data"]
        rows = max(-(-rows // devices), 1) * devices
        if rows >= self.cfg.batch_size:
            return self
        return Judge(self.model, replace(self.cfg, batch_size=rows), self.mesh)

    def score(
        self,
        exemplars: Sequence[str],
        candidates: Sequence[str],
        prompt: str | None = None,
        n: int = 1,
    ) -> list[Score]:
        """A score for each candidate.

        Args:
            prompt: what the candidates answer or continue, where that is known.
            n: answers to each question; their scores are averaged.

        Raises:
            ValueError: no candidate, one alone for a pairwise model, or texts that are too long.
        """
        for name, texts in (("exemplars", exemplars), ("candidates", candidates)):
            if isinstance(texts, str):
                raise ValueError(f"{name} is one text: give a list of texts")
        request = Request(tuple(exemplars), tuple(candidates), prompt or "", n)
        return self.score_many([request])[0]

    def best_of(
        self,
        exemplars: Sequence[str],
        candidates: Sequence[str],
        prompt: str | None = None,
        n: int = 1,
    ) -> tuple[int, Score]:
        """The number of the candidate with the highest score (of equal ones the first), and it.

        Raises:
            ValueError: as `score`, or no answer could be read.
        """
        scores = self.score(exemplars, candidates, prompt, n)
        ranked = rank(scores)
        if scores[ranked[0]].score is None:
            raise ValueError("none of the model's answers could be read: no candidate has a score")
        return ranked[0], scores[ranked[0]]

    def score_many(self, requests: Sequence[Request]) -> list[list[Score]]:
        """Scores of several requests, whose questions share batches.

        Raises:
            ValueError: as `score`, naming the request.
        """
        asked = [self.questions(request) for request in requests]
        alike: dict[Kind, list[tuple[int, int]]] = defaultdict(list)
        for r, questions in enumerate(asked):
            for q, question in enumerate(questions):
                alike[question.kind].append((r, q))
        replies: list[dict[int, Reply]] = [{} for _ in requests]
        for members in alike.values():
            for at in range(0, len(members), self.cfg.batch_size):
                batch = members[at : at + self.cfg.batch_size]
                found = self.answer([asked[r][q] for r, q in batch])
                for (r, q), reply in zip(batch, found, strict=True):
                    replies[r][q] = reply
        return [
            self.read(request, questions, [found[q] for q in range(len(questions))])
            for request, questions, found in zip(requests, asked, replies, strict=True)
        ]

    def num_questions(self, num_candidates: int, n: int) -> int:
        """Answers that a request takes."""
        return len(self._shown(num_candidates)) * n

    def questions(self, request: Request) -> list[Question]:
        """What is asked to score a request's candidates.

        Raises:
            ValueError: as `score`, naming the request.
        """
        cfg, label = self.cfg.prompt, f"request {request.name}: " if request.name else ""
        if request.n < 1:
            raise ValueError(f"{label}n is {request.n}: must be at least 1")
        if not request.candidates:
            raise ValueError(f"{label}there is no candidate to score")
        if len(request.candidates) == 1 and cfg.answer != "score":
            raise ValueError(
                f"{label}one candidate, and this model compares two: give at least two, or a model "
                "trained with --prompt.answer score"
            )
        _check_unicode(request, label)
        found = []
        start = self._start(request)
        for shown in self._shown(len(request.candidates)):
            ids = self._encode(request, [request.candidates[i] for i in shown])
            if len(ids) > cfg.max_tokens:
                which = " and ".join(str(i + 1) for i in shown)
                raise ValueError(
                    f"{label}the prompt with candidate {which} takes {len(ids)} tokens and "
                    f"--prompt.max-tokens is {cfg.max_tokens}; give shorter or fewer texts"
                )
            shared = len(start) if ids[: len(start)] == start else 0
            found += [Question(ids, shown, i, request.n > 1, shared) for i in range(request.n)]
        return found

    def answer(self, questions: Sequence[Question]) -> list[Reply]:
        """Answers to one batch: at most `batch_size` questions of one kind."""
        keys = np.stack([self._key(question) for question in questions])
        ask = self._ask[questions[0].drawn]
        with jax.set_mesh(self.mesh):
            prompts = [question.ids for question in questions]
            _, length, start = questions[0].kind
            return ask(self.model.params, prompts, keys, length, len(start))

    def kinds(self, max_samples: int) -> list[Kind]:
        """Of questions that the limits allow, each of which is a program: the shortest first. Those
        of requests whose exemplars are shared come on top."""
        lengths = sorted({padded(i) for i in range(1, self.cfg.prompt.max_tokens + 1)})
        return [(drawn, n, ()) for drawn in (False, True)[: 1 + (max_samples > 1)] for n in lengths]

    def warm_up(self, kind: Kind) -> None:
        """Compiles the program of a kind of questions."""
        drawn, length, _ = kind
        filling = self.model.tokenizer.encode("a")[:1] * length
        self.answer([Question(tuple(filling), (0,), 0, drawn)])

    def read(
        self, request: Request, questions: Sequence[Question], replies: Sequence[Reply]
    ) -> list[Score]:
        """A request's scores from the answers to its questions."""
        judged = [parse_judgement(reply.text, self.cfg.prompt) for reply in replies]
        scores = []
        for candidate in range(len(request.candidates)):
            about = [i for i, question in enumerate(questions) if candidate in question.shown]
            samples: list[list[float]] = [[] for _ in range(request.n)]
            for i in about:
                side = questions[i].shown.index(candidate)
                if (judgement := judged[i]) is not None:
                    samples[questions[i].sample].append(_score_of(judgement, side))
            means = [float(np.mean(got)) if got else None for got in samples]
            known = [mean for mean in means if mean is not None]
            scores.append(
                Score(
                    score=float(np.mean(known)) if known else None,
                    spread=float(np.std(known)) if known else None,
                    samples=tuple(means),
                    reasoning=tuple(reasoning_of(replies[i].text) for i in about),
                    parsed=sum(len(got) for got in samples),
                    asked=len(about),
                    tokens=sum(replies[i].tokens for i in about),
                )
            )
        return scores

    def _encode(self, request: Request, texts: Sequence[str]) -> tuple[int, ...]:
        messages = question_messages(request.exemplars, texts, request.prompt, self.cfg.prompt)
        return tuple(self.model.tokenizer.encode_chat(messages))

    def _start(self, request: Request) -> tuple[int, ...]:
        """What a request's prompts begin with whatever the candidates are, if that is to be read
        once; nothing for a request that fills no batch."""
        num_questions = self.num_questions(len(request.candidates), request.n)
        if not self.cfg.share_exemplars or num_questions < self.cfg.batch_size:
            return ()
        sides = 1 if self.cfg.prompt.answer == "score" else 2
        asked = [self._encode(request, [text] * sides) for text in ("a", "1", "\n")]
        return asked[0][: common_start(asked)]

    def _shown(self, num_candidates: int) -> list[tuple[int, ...]]:
        """The candidates that each question shows."""
        if self.cfg.prompt.answer == "score":
            return [(i,) for i in range(num_candidates)]
        pairs = draw_pairs(num_candidates, self.cfg.opponents, self.cfg.seed)
        return [shown for a, b in pairs for shown in ((a, b), (b, a))]

    def _key(self, question: Question) -> np.ndarray:
        """The data of a key of its own, whoever asks and whenever."""
        words = np.array([self.cfg.seed, question.sample, *question.ids], np.int64)
        digest = hashlib.blake2b(words.tobytes(), digest_size=4 * KEY_WORDS).digest()
        return np.frombuffer(digest, np.uint32)


def rank(scores: Sequence[Score]) -> list[int]:
    """Candidates by score, the highest first, those without one last; equal ones in their order."""
    known = [-np.inf if s.score is None else s.score for s in scores]
    return sorted(range(len(scores)), key=lambda i: -known[i])


def _check_unicode(request: Request, label: str) -> None:
    """Refuses half a surrogate pair, which a JSON file can hold and no tokenizer reads."""
    named = [("the prompt", request.prompt)]
    named += [(f"exemplar {i}", text) for i, text in enumerate(request.exemplars, start=1)]
    named += [(f"candidate {i}", text) for i, text in enumerate(request.candidates, start=1)]
    for name, text in named:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{label}{name} holds half a surrogate pair: not text") from None


def _score_of(judgement: Judgement, side: int) -> float:
    """What the candidate shown on a side got; of a bare verdict, 1 for a win."""
    score = judgement.score_b if side else judgement.score_a
    return float(judgement.verdict == "AB"[side]) if score is None else score
