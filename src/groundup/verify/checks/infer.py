"""Does decoding draw from the distribution that training shaped, each row as if it were alone?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from groundup.infer import sample, text
from groundup.infer.sample import SamplingParams
from groundup.model import loss
from groundup.model.batch import IGNORE
from groundup.model.transformer import Transformer
from groundup.verify import draw, rig
from groundup.verify.check import Measurement, check, violations
from groundup.verify.subject import Subject

# (temperature, top-k, top-p), 0 and 1 being off
CUTS = ((1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.7), (1.0, 3, 0.8), (0.5, 0, 0.8), (2.0, 5, 0.5))


def prompts_of(subject: Subject) -> list[list[int]]:
    """Three prompts of unlike length."""
    tokenizer = subject.tokenizer
    return [[tokenizer.bos, *tokenizer.encode(t)] for t in ("a", "the river and the stone", "seven early")]


def trainer_logprobs(model: Transformer, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probability of each of `ids` after `prompt`, as the trainer computes it in one forward pass."""
    row = torch.tensor([[*prompt, *ids]])
    targets = row[:, 1:].clone()
    targets[:, : len(prompt) - 1] = IGNORE
    with torch.no_grad():
        return loss.token_logprobs(model, model(row[:, :-1]), targets, temperature)[0, len(prompt) - 1 :]


@check(
    "sampler-logprobs-equal-trainer",
    "invariance",
    "infer",
    bug="The sampler's log-probabilities are of another distribution than the trainer's: on-policy learning is biased.",
    remedy="Same temperature on both sides, before top-k and top-p; weights shared, eval mode (infer/, model/loss.py).",
    reference="huggingface/trl issues 4159, 6789, pull 7269",
)
def sampler_logprobs_equal_trainer(subject: Subject) -> Measurement:
    """Largest |log p of a drawn token by the engine - by the trainer|, at temperatures 0.6, 1 and 1.7: alone, with
    top-k, and with top-p beside it.

    Rounding of logits divided by the temperature; the log of the sum adds as much again.
    """
    model = subject.chat_model()
    engine, worst, scale = subject.engine(model), 0.0, 0.0
    prompts, heats = prompts_of(subject), (0.6, 1.0, 1.7)
    for temperature in heats:
        params = [
            SamplingParams(12, temperature, top_k=k, top_p=p, seed=draw.shifted(s))
            for s, k, p in ((1, 0, 1.0), (2, 5, 1.0), (3, 7, 0.6))
        ]
        for prompt, done in zip(prompts, engine.generate(prompts, params), strict=True):
            expected = trainer_logprobs(model, prompt, done.ids, temperature)
            worst = max(worst, rig.largest(torch.tensor(done.logprobs) - expected))
            scale = max(scale, rig.largest(expected))
    return Measurement(worst, 2 * rig.tolerance(model.config, scale + 4) / min(heats))


@check(
    "greedy-is-argmax",
    "identity",
    "infer",
    bug="Temperature 0 samples (at a default of 1), or decoding slips by a token: benchmarks are noise.",
    remedy="temperature == 0 means argmax; never `temperature or 1.0` (infer/sample.py).",
    reference=(
        "ethz-spylab/agentdojo pull 141; huggingface/lighteval issue 559; EleutherAI/lm-evaluation-harness pull 2797"
    ),
)
def greedy_is_argmax(subject: Subject) -> Measurement:
    """Largest gap between the best logit of a full forward pass and that of the token decoded at temperature 0; the
    same with top_k = 1, and with a top_p below any first probability. Two roundings may swap near ties."""
    model = subject.chat_model()
    engine, worst, scale = subject.engine(model), 0.0, 0.0
    for params in (SamplingParams(16, 0.0), SamplingParams(16, 1.0, top_k=1), SamplingParams(16, 1.0, top_p=1e-9)):
        for prompt, done in zip(prompts_of(subject), engine.generate(prompts_of(subject), params), strict=True):
            row = torch.tensor([[*prompt, *done.ids]])
            logits = rig.logits_of(model, row[:, :-1])[0, len(prompt) - 1 :, : subject.tokenizer.vocab_size]
            chosen = logits.gather(1, torch.tensor(done.ids)[:, None])[:, 0]
            worst, scale = max(worst, rig.largest(logits.amax(-1) - chosen)), max(scale, rig.largest(logits))
    return Measurement(worst, 2 * rig.tolerance(model.config, scale))


@check(
    "batched-equals-alone",
    "invariance",
    "infer",
    bug="What a row says depends on its company in the batch: padding or another row's state leaks in.",
    remedy="A row's mask, position, seed and step must be its own (infer/decode.py, infer/cache.py).",
    reference="unslothai/unsloth issue 1066, pull 4078; jundot/omlx issue 3476",
)
def batched_equals_alone(subject: Subject) -> Measurement:
    """Rows whose ids differ between a batch with other prompts, lengths, limits and temperatures, and alone.

    Each row draws by a hash of its own seed and step; rounding moves a draw only when a uniform number falls within
    about 1e-5 of an edge: once in thousands of such checks, and the seeds are fixed.
    """
    model = subject.chat_model()
    prompts = [*prompts_of(subject), prompts_of(subject)[1]]
    params = [SamplingParams(n, t, seed=draw.shifted(n)) for n, t in ((6, 1.0), (20, 0.8), (13, 0.0), (9, 1.3))]
    together = subject.engine(model).generate(prompts, params)
    found = []
    for n, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        if subject.engine(model).generate([prompt], [one])[0].ids != together[n].ids:
            found.append(f"row {n}")
    small = subject.engine(model)
    small.max_rows = 2  # rows that join while others are half way
    found += [
        f"row {n}, joining late"
        for n, done in enumerate(small.generate(prompts, params))
        if done.ids != together[n].ids
    ]
    return violations(found, 2 * len(prompts))


@check(
    "samples-follow-the-distribution",
    "identity",
    "infer",
    bug="The sampler is skewed: a token too rare or frequent, temperature applied twice, top-k or top-p cut elsewhere.",
    remedy="See Sampler and uniform() in infer/sample.py.",
    reference=(
        "RL-Align/RL-Kernel issue 81; kingoflolz/mesh-transformer-jax issue 164; ml-explore/mlx-lm pull 388; "
        "sgl-project/sglang-jax pull 1563"
    ),
)
def samples_follow_the_distribution(subject: Subject) -> Measurement:
    """Largest chi-squared statistic of 8,000 draws from 8 logits against softmax(logits / T), cut by top-k and then by
    top-p, a share of what top-k left; over seven settings, whose rows alternate in one batch.

    With 7 degrees of freedom it passes 60 by chance less than once in 10^9. A draw of a token that top-k or top-p
    cut counts as infinite. Where both are set, either alone keeps another number of tokens, and so does top-p first;
    where the temperature is not 1, so does top-p before it.
    """
    n, logits = 8_000, torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])
    worst, settings = 0.0, len(CUTS)
    params = [SamplingParams(1, *CUTS[k % settings], seed=draw.shifted(k)) for k in range(n * settings)]
    ids, _ = sample.Sampler(params)(logits.expand(len(params), -1), torch.zeros(len(params), dtype=torch.int64), 8)
    for k, (temperature, top_k, top_p) in enumerate(CUTS):
        expected = torch.softmax(logits.double() / temperature, 0)
        expected[top_k or 8 :] = 0
        expected = expected / expected.sum()
        kept = int((expected.cumsum(0) < top_p - 1e-9).sum()) + 1
        expected[kept:] = 0
        expected = expected / expected.sum() * n
        counts = torch.bincount(ids[k::settings], minlength=8).double()
        if counts[kept:].any():
            return Measurement(math.inf, 60.0, f"a token was drawn that top_k {top_k}, top_p {top_p} cut")
        worst = max(worst, float(((counts - expected)[:kept] ** 2 / expected[:kept]).sum()))
    return Measurement(worst, 60.0, f"{n:,} draws of each of {settings}")


@check(
    "stop-strings-cut-cleanly",
    "identity",
    "infer",
    bug="A stop string across token borders is missed, or a part of it leaks; a character is cut in two in a stream.",
    remedy="Search the held text, not token by token; decode bytes incrementally (infer/text.py).",
    reference="vllm-project/vllm issue 3574; mzau/mlx-knife issue 68; osaurus-ai/vmlx-swift pull 109",
)
def stop_strings_cut_cleanly(subject: Subject) -> Measurement:
    """(text, stop strings) for which the streamed text is not the text before the first stop, or a piece holds half a
    character, or a piece once given had to be taken back."""
    tokenizer, found = subject.tokenizer, []
    cases = [
        ("A A B and more", ("A B",)),
        ("one ### two", ("###", "\n\n")),
        ("abcabcabd!", ("abcabd",)),
        ("no stop here", ("ZZZ",)),
        ("\U0001f468\u200d\U0001f469 and \u65e5\u672c\u8a9e", ("\u672c",)),
        ("ends with a", ("ab",)),
        ("xxSTOP", ("STOP", "xS")),
    ]
    for said, stops in cases:
        stream = text.TextStream(tokenizer, stops)
        pieces = [stream.push(i) for i in tokenizer.encode(said)]
        pieces.append(stream.finish())
        expected = said[: min([at for at in map(said.find, stops) if at >= 0], default=len(said))]
        if "".join(pieces) != expected or stream.text != expected:
            found.append(f"{said[:20]!r}: {''.join(pieces)!r}")
        if any("\ufffd" in piece for piece in pieces):
            found.append(f"{said[:20]!r}: half a character")
    return violations(found, len(cases))


@check(
    "decoding-leaves-no-trace",
    "locality",
    "infer",
    bug="Sampling inside training changes the run: random numbers used up, dropout left off, weights touched.",
    remedy="The engine draws by hashes, and restores each module's mode (infer/engine.py).",
    reference="coleygroup/ms-pred issue 38; IBM/pytorch-seq2seq pull 38",
)
def decoding_leaves_no_trace(subject: Subject) -> Measurement:
    """Of four, after generating in training mode: random state, each module's mode, weights, the same text again."""
    model = subject.chat_model(dropout=0.3).train()
    model.blocks[0].eval()  # modes may differ; each must come back as it was
    state = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = subject.engine(model).generate(prompts_of(subject), SamplingParams(8, seed=draw.shifted(1)))
    found = []
    if not torch.equal(torch.get_rng_state(), state):
        found.append("random numbers were drawn")
    if [module.training for module in model.modules()] != modes:
        found.append("a module's mode changed")
    if not all(torch.equal(weights[name], value) for name, value in model.state_dict().items()):
        found.append("the weights changed")
    again = subject.engine(model).generate(prompts_of(subject), SamplingParams(8, seed=draw.shifted(1)))
    if [c.ids for c in first] != [c.ids for c in again]:
        found.append("the same seeds gave other texts: dropout is on while decoding")
    return violations(found, 4)
