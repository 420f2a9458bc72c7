"""Are places told apart as the recipe says: by vectors added to the stream, or by biases on the scores?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from groundup.infer.cache import KVCache
from groundup.model import position
from groundup.verify import rig
from groundup.verify.check import Measurement, NotApplicable, check, violations
from groundup.verify.checks.attention import settings
from groundup.verify.reference import Reference, bucket_share, slopes, visible
from groundup.verify.subject import Subject


def needs(subject: Subject, *kinds: str) -> None:
    if subject.micro.position not in kinds:
        raise NotApplicable(f"position is {subject.micro.position}")


@check(
    "positions-matter",
    "sensitivity",
    "model",
    bug="The position encoding is computed and never applied: the model sees a bag of words and still learns a little.",
    remedy="See how Transformer.forward hands angles, masks or position vectors on, and `rotate`.",
    reference="pytorch/torchtitan pull 3772; Tencent-Hunyuan/UniRL pull 207",
)
def positions_matter(subject: Subject) -> Measurement:
    """Smallest change at any later position, of the largest in 8 rows, when distances between tokens are tripled; must
    be above rounding.

    Angles, slopes, buckets or vectors change by two whole places' worth, so the effect of a working encoding is far
    above the tolerance of rounding, ten times which is the bound. Without positions nothing may change by that, and
    order must matter all the same: what a token carries upwards depends on what stood before it, so turning round the
    first ten tokens changes the eleventh.
    """
    model, length = subject.build_model(), 20
    tokens = rig.random_tokens(subject, 8, length, seed=21)
    plain = rig.logits_of(model, tokens)
    apart = rig.logits_of(model, tokens, positions=(3 * torch.arange(length))[None])
    bound = 10 * rig.tolerance(subject.micro, rig.largest(plain))
    change = (plain - apart)[:, 1:].abs().amax(-1).amax(0)
    if subject.micro.position == "none":
        if float(change.max()) > 0:
            return Measurement(-math.inf, bound, "without position, places must not matter", ">=")
        turned = rig.logits_of(model, torch.cat([tokens[:, :10].flip(1), tokens[:, 10:]], dim=1))
        change = (plain - turned)[:, 10].abs().amax()
    return Measurement(float(change.min()), bound, direction=">=")


@check(
    "stream-starts-with-token-and-place",
    "identity",
    "model",
    bug="embed_scale is applied twice or not at all, or a position vector is missing, shifted or scaled with it.",
    remedy="embed_scale times the embedding, then the position's vector, then the blocks (Transformer.forward).",
    reference="TensorAuto/OpenTau pull 179; vllm-project/vllm issue 52667; huggingface/transformers pull 29402",
)
def stream_starts_with_token_and_place(subject: Subject) -> Measurement:
    """Largest difference between what enters the first block and embed_scale * embedding (+ the learned row, or the
    sines and cosines of the place), in fp64; plain and packed. A product and a sum, and the angle's eps p."""
    model = subject.build_model()
    tokens = rig.random_tokens(subject, 2, 24, seed=62)
    worst, scale = 0.0, 0.0
    for _, given in settings(24):
        entered = rig.calls(model, "", tokens, **given)[0].inputs[0]
        expected = Reference(model).stream(tokens, given["positions"])
        worst, scale = max(worst, rig.largest(entered - expected)), max(scale, rig.largest(expected))
    return Measurement(worst, rig.EPS * (2 * scale + 4 * 24), subject.micro.position)


def _masks(subject: Subject, seed: int) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """(setting, layer's mask (B or 1, H or 1, T, S), distances (B, T, T), visible) of each layer: plain, packed, and
    from position 0 with a cache."""
    model, found = subject.build_model(), []
    reference, tokens = Reference(model), rig.random_tokens(subject, 2, 24, seed=seed)
    cached = {"positions": torch.arange(24).expand(2, -1), "cache": KVCache(model.config, 2, 24)}
    for name, given in (*settings(24), ("cached", cached)):
        places = given["positions"]
        for layer, call in enumerate(rig.calls(model, "attention", tokens, **given)):
            seen = visible(24, given.get("documents"), reference.window(layer))
            found.append((f"{name}, layer {layer}", call.inputs[2], places[:, :, None] - places[:, None, :], seen))
    return found


@check(
    "alibi-falls-with-distance",
    "identity",
    "model",
    bug="ALiBi's sign or slopes are wrong: far tokens are favoured, or all heads look equally far.",
    remedy="-slope * (query's place - key's place), slopes 2^(-8 h / H) (alibi_slopes in model/position.py).",
    reference="ml-explore/mlx pull 3071; paiml/aprender pull 2143; NVIDIA/TensorRT-LLM pull 1611",
)
def alibi_falls_with_distance(subject: Subject) -> Measurement:
    """Largest difference of slopes to the published rule, for 1 to 40 heads and the recipe's own; and of the bias that
    reaches each layer to -slope * distance where a key is visible. Infinite where an invisible one is not -inf.

    Slopes are powers of two and halves between them: one rounding each; a bias is one more, of size at most 24.
    """
    needs(subject, "alibi")
    heads = {*range(1, 41), (subject.config or subject.micro).n_heads}
    worst = max(rig.largest(position.alibi_slopes(n) - torch.tensor(slopes(n)).double()) for n in heads)
    own = torch.tensor(slopes(subject.micro.n_heads), dtype=torch.float64)[:, None, None]
    for name, mask, distance, seen in _masks(subject, 63):
        expected = (-own * distance[:, None]).expand(2, -1, -1, -1)
        seen, mask = seen.expand_as(expected), mask.expand_as(expected)
        if not bool((mask[~seen] == -math.inf).all()):
            return Measurement(math.inf, 0.0, f"{name}: an invisible key has a score")
        worst = max(worst, rig.largest(mask[seen] - expected[seen]))
    return Measurement(worst, 2 * rig.EPS * 24)


@check(
    "t5-buckets-follow-the-formula",
    "identity",
    "model",
    bug="A distance falls into the wrong bucket (at the logarithm's borders by one), or the bias is not its bucket's.",
    remedy="relative_buckets in model/position.py: half of them exact, then floor of a logarithm, then the last.",
    reference="huggingface/transformers pull 8518; lucidrains/x-transformers pull 10; NVIDIA/TensorRT-LLM pull 13870",
)
def t5_buckets_follow_the_formula(subject: Subject) -> Measurement:
    """Distances up to three times the furthest, at four shapes, whose bucket is not the published one; and visible
    places whose bias is not, bit for bit, the table's entry for that bucket.

    Where the logarithm lies within 1e-5 of a whole number, fp32 may round to either side: both are right.
    """
    needs(subject, "t5")
    real, found, looked = subject.config or subject.micro, [], 0
    shapes = {(32, 128), (8, 20), (subject.micro.relative_buckets, subject.micro.relative_distance)}
    for buckets, furthest in sorted({*shapes, (real.relative_buckets, real.relative_distance)}):
        ours = position.relative_buckets(torch.arange(3 * furthest), buckets, furthest).tolist()
        for distance, one in enumerate(ours):
            looked += 1
            if one not in _buckets(distance, buckets, furthest):
                found.append(f"{distance} is in bucket {one} of {buckets}")
    table = subject.build_model().relative_bias.weight.detach()  # type: ignore[union-attr]
    config = subject.micro
    for name, mask, back, seen in _masks(subject, 64):
        right = torch.zeros_like(back, dtype=torch.bool)
        for d in back.unique().tolist():
            for b in _buckets(max(d, 0), config.relative_buckets, config.relative_distance):
                right |= (back == d) & (mask == table[b][:, None, None]).all(1)
        seen = seen[:, 0].expand_as(right)
        looked += int(seen.sum())
        found += [f"{name}: query {q}, key {k}" for _, q, k in (~right & seen).nonzero().tolist()]
        found += [f"{name}: an invisible key has a score"] if (mask.amax(1)[~seen] != -math.inf).any() else []
    return violations(found, looked)


def _buckets(distance: int, buckets: int, furthest: int) -> set[int]:
    exact = buckets // 2
    if distance < exact:
        return {distance}
    share = bucket_share(distance, buckets, furthest)
    return {min(exact + math.floor(share + off), buckets - 1) for off in (-1e-5, 1e-5)}
