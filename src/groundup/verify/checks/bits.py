"""Are bits per byte of the bytes there are, of text that was held out, and does measuring them change nothing?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from groundup.evaluate import bpb
from groundup.evaluate.likelihood import Pair
from groundup.evaluate.run import evaluate_model
from groundup.infer.score import Score
from groundup.recipe.schema import EvaluateSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.evaluate import harness, log_prob, made_choices, rounding
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.subject import Subject

# Text whose characters are several tokens each, and text that is none of the tokenizer's own.
MANY_BYTES = [
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u65e5\u672c\u8a9e \u0e44\u0e17\u0e22",
    "e\u0301 \x00\x7f\u2028",
]


@dataclass(frozen=True)
class Documents:
    """Texts as a shard holds them."""

    tokens: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Documents:
        rows = [[*tokenizer.prefix, *tokenizer.encode(text), tokenizer.eos] for text in texts]
        ends = np.cumsum([len(row) for row in rows])
        return cls(np.array([i for row in rows for i in row], dtype=np.int64), np.append(0, ends[:-1]).astype(np.int64))


def scored_texts() -> list[str]:
    """Documents with tokens that are a part of a character, and with characters of one to four bytes."""
    return [*MICRO_CORPUS[:12], *MANY_BYTES]


def bytes_scored(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """UTF-8 bytes of the texts; without those of each first token where that stands where a BOS would."""
    first = 0 if tokenizer.prefix else sum(len(tokenizer.token_bytes(tokenizer.encode(text)[0])) for text in texts)
    return sum(len(text.encode()) for text in texts) - first


@check(
    "bits-per-byte-of-a-uniform-model",
    "identity",
    "evaluate",
    bug="Bits per byte divides by characters, by decoded text or by tokens, or leaves tokens uncounted.",
    remedy="Divide by the bytes that the tokens stand for, parts of characters too (token_sizes in evaluate/bpb.py).",
    reference=(
        "stanford-crfm/helm issue 308; facebookresearch/adaptive-span issue 17; "
        "EleutherAI/lm-evaluation-harness issue 3278"
    ),
)
def bits_per_byte_of_a_uniform_model(subject: Subject) -> Measurement:
    """Largest |bits per byte / (log2(V) tokens / bytes) - 1| of a model to which all V ids are alike. Tokens (EOS
    included, BOS not) and UTF-8 bytes are counted from the texts; then of half as many bytes, from the counts reported.

    Each log-probability is -ln(V) but for the rounding of a sum of V equal numbers and its logarithm.
    """
    tokenizer = subject.tokenizer
    model = subject.chat_model(tied=True, bias=tuple(b for b in subject.micro.bias if b != "head"))
    with torch.no_grad():
        model.embed.weight.zero_()
    texts = scored_texts()
    documents = Documents.of(tokenizer, texts)
    size = bytes_scored(tokenizer, texts)
    tokens = len(documents.tokens) - len(texts) * (len(tokenizer.prefix) or 1)
    bits = math.log2(model.config.vocab_size)
    found = bpb.bits_per_byte(model, tokenizer, documents, 10 * size)
    half = bpb.bits_per_byte(model, tokenizer, documents, size // 2)
    if not size // 2 - 64 <= half["bytes"] <= size // 2:
        return Measurement(math.inf, 0.0, f"{half['bytes']} bytes were scored of {size // 2} asked for")
    worst = max(
        abs(found["value"] / (bits * tokens / size) - 1),
        abs(half["value"] / (bits * half["tokens"] / half["bytes"]) - 1),
    )
    return Measurement(worst, 4 * rig.EPS * model.config.vocab_size**0.5, f"{tokens} tokens, {size} bytes")


@check(
    "bits-per-byte-is-the-models-cost",
    "identity",
    "evaluate",
    bug="Bits per byte is of other tokens than the text's: the end unscored, nats taken for bits, a mean of means.",
    remedy="The sum of all costs over the sum of all bytes; see evaluate/bpb.py.",
    reference="stanford-crfm/helm issue 308; huggingface/transformers issue 34138",
)
def bits_per_byte_is_the_models_cost(subject: Subject) -> Measurement:
    """|bits per byte - sum of the trainer's costs of each document's tokens after BOS / ln 2 / UTF-8 bytes|.

    One document is one row there. The bound: rounding of each log-probability, by bytes as the sum is.
    """
    model, tokenizer, texts = subject.chat_model(), subject.tokenizer, scored_texts()
    documents = Documents.of(tokenizer, texts)
    found = bpb.bits_per_byte(model, tokenizer, documents, 10**9)
    rows = [row.tolist() for row in np.split(documents.tokens, documents.bounds[1:])]
    nats = -sum(log_prob(model, row[:1], row[1:]) for row in rows)
    tokens, size = sum(len(row) - 1 for row in rows), bytes_scored(tokenizer, texts)
    bound = rounding(model, tokens, nats / tokens) / size / math.log(2)
    worst = abs(found["value"] - nats / math.log(2) / size)
    if not found["low"] <= found["value"] <= found["high"]:
        return Measurement(math.inf, bound, f"{found['value']} is not in {found['low']} to {found['high']}")
    return Measurement(worst, bound, f"{tokens} tokens, {size} bytes")


@check(
    "held-out-text-is-what-is-scored",
    "locality",
    "evaluate",
    bug="Bits per byte is measured on text that was trained on, on the front of a sorted shard, or on documents twice.",
    remedy="Open the validation shard, draw documents without putting back (evaluate/run.py, evaluate/bpb.py).",
    reference="sgl-project/sgl-eval pull 31; EleutherAI/lm-evaluation-harness issue 2598",
)
def held_out_text_is_what_is_scored(subject: Subject) -> Measurement:
    """Documents scored by an evaluation of the micro run that are not whole documents of its validation shard, that
    stand in train, or that come twice; and held-out documents never scored though there is room for all."""
    both = subject.micro_shards
    held_out = sorted(both.validation.document(i).tolist() for i in range(both.validation.n_documents))
    trained = {both.train.document(i).tobytes() for i in range(both.train.n_documents)}
    heard: list[Pair] = []

    def listen(_: Any, pairs: Sequence[Pair], *__: Any) -> list[Score]:
        heard.extend(pairs)
        return [Score(-1.0, True)] * len(pairs)

    model = subject.build_model(vocab_size=subject.micro_tokenizer.vocab_size, context=4096)
    right, bpb.score_pairs = bpb.score_pairs, listen  # type: ignore[assignment]
    try:
        with subject.scratch() as folder:
            section = EvaluateSection(bits_per_byte_bytes=10**7)
            evaluate_model(model, subject.micro_tokenizer, section, both.validation.path, 0, folder, "base")
    finally:
        bpb.score_pairs = right
    scored = sorted([*before, *ids] for before, ids in heard)
    dtype = both.train.tokens.dtype
    found = (
        [f"{len(scored)} documents are scored, {len(held_out)} are held out"] if len(scored) != len(held_out) else []
    )
    found += ["a document that is not held out" for one in scored if one not in held_out]
    found += ["a document that was trained on" for one in scored if np.array(one, dtype=dtype).tobytes() in trained]
    found += ["a document twice" for a, b in pairwise(scored) if a == b]
    return violations(found, len(held_out))


@check(
    "evaluation-leaves-no-trace",
    "locality",
    "evaluate",
    bug="Evaluating changes the model, its modes or the random state: the run goes on as another run.",
    remedy="Score under inference mode and evaluating(), draw from generators of one's own (evaluate/, infer/).",
    reference="coleygroup/ms-pred issue 38; Lightning-AI/pytorch-lightning issue 21410",
)
def evaluation_leaves_no_trace(subject: Subject) -> Measurement:
    """Of nine, after bits per byte and (where lm-eval is installed) a multiple-choice task in training mode, with
    dropout: random state of torch, numpy and Python, modes, weights, gradients, whether parameters are trained, and
    both results a second time."""
    model = subject.chat_model(dropout=0.3).train()
    model.blocks[0].eval()  # modes may differ; each must come back as it was
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    documents = Documents.of(subject.tokenizer, MICRO_CORPUS[:6])

    def evaluated() -> tuple[Any, Any]:
        scored = bpb.bits_per_byte(model, subject.tokenizer, documents, 10**6)
        try:
            lm = harness(subject, model)
        except NotApplicable:
            return scored, None
        from groundup.evaluate.tasks import run_task

        return scored, run_task(lm, made_choices(6, 1), 8)

    state = {
        "torch's random state": lambda: torch.get_rng_state().tolist(),
        "numpy's random state": lambda: str(np.random.get_state()),
        "Python's random state": random.getstate,
        "a module's mode": lambda: [module.training for module in model.modules()],
        "the weights": lambda: [value.numpy().tobytes() for value in model.state_dict().values()],
        "gradients": lambda: [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "what is trained": lambda: [p.requires_grad for p in model.parameters()],
    }
    before = {name: look() for name, look in state.items()}
    once = evaluated()
    found = [f"{name} changed" for name, look in state.items() if look() != before[name]]
    again = evaluated()
    found += [
        f"another result, the second time: {what}"
        for what, a, b in zip(("bytes", "task"), once, again, strict=True)
        if a != b
    ]
    return violations(found, len(state) + 2)
