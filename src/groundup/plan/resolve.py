"""`auto` -> an explicit value, with the reason and the source beside it. Resolved once; nothing downstream guesses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from groundup.errors import UserError, problems
from groundup.model.config import GATED, ModelConfig
from groundup.model.count import count
from groundup.model.obstacles import check_heads
from groundup.plan.host import Host
from groundup.plan.optimizers import beside_adamw
from groundup.plan.shapes import shared_batch
from groundup.plan.transfer import MOST_RATE, Suggestion, fitted_parameters, transfer
from groundup.recipe.load import parse_recipe
from groundup.recipe.ramp import BatchSizes
from groundup.recipe.schema import Recipe

TOKENS_PER_PARAMETER = 20
CPU_TOKENS_PER_FORWARD = (4_096, 16_384)  # wide models, narrow ones
NARROW = 256  # wide up to which a CPU takes the most
GPU_TOKENS_PER_FORWARD = 32_768
SEARCH_ONLY = ("params", "d_ff_multiple")  # keys of `model:` that only decide others
RAMP_STEPS = 1_000_000  # so finely is a ramp averaged
OFF_TARGET = 1.25  # largest ratio between the parameters asked for and those built


@dataclass(frozen=True)
class Resolved:
    """One `auto` that became a value."""

    key: str
    value: Any
    reason: str
    source: str


def resolve(
    recipe: Recipe, host: Host, counted_vocab: int | None = None, devices: int = 1
) -> tuple[Recipe, list[Resolved]]:
    """Every `auto` in the recipe made explicit; a pure function of (recipe, host, counted_vocab, devices).

    counted_vocab: entries of a tokenizer whose size is not chosen (`counts_vocab`). devices: that share an `auto`
    batch of pretraining evenly.
    Raises UserError listing all impossible dimensions, with the nearest valid ones.
    """
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    notes: list[Resolved] = []

    def put(key: str, value: Any, reason: str, source: str) -> None:
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        if node[last] == "auto":
            node[last] = value
            notes.append(Resolved(key, value, reason, source))

    put("device", host.device, "a GPU is used when there is one", "this machine")
    put("threads", host.cores, "one thread a core that this process may use", "this machine")
    if reason := counts_vocab(recipe):
        put("tokenizer.vocab_size", counted_vocab, reason, "counted")
    else:
        put("tokenizer.vocab_size", *_vocab(recipe))
    _shape(tree, recipe, put)
    config = model_config(parse_recipe(_with_placeholders(tree), "recipe"))
    problems("model", config.problems() or _off_target(config, recipe))
    for stage in ("pretrain", "sft", "dpo", "grpo"):
        if tree.get(stage) is not None:
            _training(tree, stage, config, host, put, devices)
    return parse_recipe(tree, "resolved recipe"), notes


def counts_vocab(recipe: Recipe) -> str:
    """What the vocabulary is made of where its size cannot be chosen but counted; "" where it can."""
    if recipe.tokenizer.load is not None:
        return f"entries of {recipe.tokenizer.load}, with groundup's 6 specials"
    return {
        "char": "characters of the corpus + 256 fallback bytes + 6 specials",
        "byte": "256 bytes + 6 specials",
    }.get(recipe.tokenizer.kind, "")


def model_config(recipe: Recipe) -> ModelConfig:
    """The ModelConfig of a recipe whose dimensions are resolved."""
    section = recipe.model.model_dump(exclude=set(SEARCH_ONLY))
    return ModelConfig(vocab_size=int(recipe.tokenizer.vocab_size), **section)


def _with_placeholders(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tree.items() if v is not None}


def _vocab(recipe: Recipe) -> tuple[int, str, str]:
    target = recipe.model.params
    if target is None:
        return 4096, "no size given: enough for one language", "default, not tuned"
    vocab = 2 ** round(math.log2(max(512, min(50_000, 1.3 * target**0.5))))
    return (
        vocab,
        "about sqrt(parameters): larger models carry larger vocabularies",
        "default, not tuned; cf. 2407.13623",
    )


def _shape(tree: dict[str, Any], recipe: Recipe, put: Any) -> None:
    m = tree["model"]
    if m["d_model"] == "auto" or m["n_layers"] == "auto":
        if recipe.model.params is None:
            raise UserError("model: give params (a size such as 1M), or d_model and n_layers")
        width, layers = _fit(tree, recipe.model.params)
        put("model.d_model", width, f"nearest to {recipe.model.params:,} parameters at a sound aspect ratio", "search")
        put(
            "model.n_layers", layers, f"nearest to {recipe.model.params:,} parameters at a sound aspect ratio", "search"
        )
    d = m["d_model"]
    if m["n_heads"] == "auto":
        head = m["head_dim"] if m["head_dim"] != "auto" else _head_dim(d)
        put("model.n_heads", max(1, d // head), f"heads of {head}", "2305.13245 uses 64-128; small widths need less")
    if m["head_dim"] == "auto":
        problems("model", check_heads(d, m["n_heads"]))
        put("model.head_dim", d // m["n_heads"], "d_model / n_heads", "1706.03762")
    put("model.n_kv_heads", m["n_heads"], "as many as query heads: the cache is small at this size", "1706.03762")
    multiple = m["d_ff_multiple"]
    form = "8/3 d_model" if m["mlp"] in GATED else "4 d_model"
    put("model.d_ff", d_ff(d, m["mlp"], multiple), f"{form}, in {multiple}s", "2002.05202")


def _off_target(config: ModelConfig, recipe: Recipe) -> list[str]:
    """`params` is a promise: a shape that misses it by more than a quarter is refused, not built in silence."""
    target, total = recipe.model.params, count(config)["total"]
    if target is None or abs(math.log(total / target)) <= math.log(OFF_TARGET):
        return []
    given = [k for k in ("d_model", "n_layers", "n_heads", "d_ff") if getattr(recipe.model, k) != "auto"]
    if given:
        advice = f"leave params away, or set {' and '.join(given)} to auto"
    elif total < target:
        advice = f"set params to {total:,}, the largest that is searched for"
    else:
        embedding = count(config)["embedding"]
        advice = (
            f"{embedding:,} of them are the embedding of {config.vocab_size:,} tokens: set params to {total:,}, "
            "or lower tokenizer.vocab_size"
        )
    return [f"params asks for {target:,} parameters, the nearest shape has {total:,}: {advice}"]


def _head_dim(d_model: int) -> int:
    return 32 if d_model < 384 else 64 if d_model < 2048 else 128


def d_ff(d_model: int, mlp: str, multiple: int = 32) -> int:
    """Hidden width with the parameters of a plain 4 d_model layer (Shazeer 2020: 2/3 for the gated forms)."""
    width = 8 * d_model / 3 if mlp in GATED else 4 * d_model
    return math.ceil(width / multiple) * multiple


def _fit(tree: dict[str, Any], target: int) -> tuple[int, int]:
    """(d_model, n_layers) nearest to `target` parameters; wider models are given more layers more slowly."""
    m = tree["model"]
    widths = [m["d_model"]] if m["d_model"] != "auto" else [*range(32, 512, 32), *range(512, 16385, 128)]
    layers = [m["n_layers"]] if m["n_layers"] != "auto" else range(1, 129)
    best, best_cost = (widths[0], layers[0]), math.inf
    for d in widths:
        heads = m["n_heads"] if m["n_heads"] != "auto" else max(1, d // _head_dim(d))
        if d % heads:
            continue
        ratio = min(128.0, max(24.0, 16 * math.log2(d) - 80))  # 32 at 128, 73 at 768, 96 at 2048: GPT-2 to Llama
        for n in layers:
            dims = {
                "d_model": d,
                "n_layers": n,
                "n_heads": heads,
                "n_kv_heads": heads,
                "head_dim": d // heads,
                "d_ff": d_ff(d, m["mlp"], m["d_ff_multiple"]),
            }
            dims = {key: value if m[key] == "auto" else m[key] for key, value in dims.items()}
            section = {key: value for key, value in m.items() if key not in SEARCH_ONLY}
            total = count(ModelConfig(vocab_size=tree["tokenizer"]["vocab_size"], **{**section, **dims}))["total"]
            cost = abs(math.log(total / target)) + 0.1 * abs(math.log(d / n / ratio))
            if cost < best_cost:
                best, best_cost = (d, n), cost
            if total > 2 * target:
                break
    return best


def _advice(pretrain: dict[str, Any], config: ModelConfig) -> Suggestion:
    """What the recipe's rule says of batch and rate. Batch and tokens may hang on each other: then by iteration."""
    counted = count(config)
    batch, found = pretrain["batch_size"], None
    for _ in range(20):
        if pretrain["steps"] == "auto":
            tokens = float(TOKENS_PER_PARAMETER * counted["total"])
        else:
            tokens = float(pretrain["steps"] * (64 if batch == "auto" else batch) * config.context)
        found = transfer(pretrain["rule"], fitted_parameters(config), tokens, config.context, d_model=config.d_model)
        if pretrain["batch_size"] != "auto" or found.batch_size == batch:
            break
        batch = found.batch_size
    assert found is not None
    return found


def _mean_batch(section: dict[str, Any]) -> float:
    """Sequences of a step, on average over the run where its batches grow."""
    ramp = tuple((float(share), int(size)) for share, size in section.get("batch_ramp") or [])
    return BatchSizes(int(section["batch_size"]), ramp, RAMP_STEPS).before(RAMP_STEPS) / RAMP_STEPS


def cpu_tokens_per_forward(width: int) -> int:
    """Tokens of a forward pass on a CPU: activations take memory by tokens x width, and the products of a wide model
    are as fast with fewer; a narrow one needs many to outweigh what every call costs. A power of two."""
    fewest, most = CPU_TOKENS_PER_FORWARD
    return min(most, max(fewest, 1 << max(most * NARROW // width, 1).bit_length() - 1))


def _training(tree: dict[str, Any], stage: str, config: ModelConfig, host: Host, put: Any, devices: int) -> None:
    s = tree[stage]
    n = count(config)["total"]
    pretraining = stage == "pretrain"
    advice = _advice(tree["pretrain"], config)
    if pretraining:
        batch = shared_batch(advice.batch_size, devices)
        why = "from size and tokens" + (", rounded so that devices share it" if batch != advice.batch_size else "")
        put("pretrain.batch_size", batch, why, advice.source)
    per_step = _mean_batch(s) * config.context
    steps = max(1, round(TOKENS_PER_PARAMETER * n / per_step))
    if pretraining:
        put("pretrain.steps", steps, f"{TOKENS_PER_PARAMETER} tokens a parameter", "2203.15556 (Chinchilla)")
    else:
        put(f"{stage}.steps", {"sft": 400, "dpo": 100, "grpo": 100}[stage], "a short stage", "default, not tuned")
    budget = cpu_tokens_per_forward(config.d_model) if host.device == "cpu" else GPU_TOKENS_PER_FORWARD
    rows = s["batch_size"] * s.get("group_size", 1)
    fits = max(1, min(rows, budget // config.context // (2 if stage == "dpo" else 1)))
    why = f"at most {budget:,} tokens in one forward pass"
    sizes = [size for _, size in s.get("batch_ramp") or []]
    if sizes:  # one shape throughout: a compiled block that has seen two computes with other kernels than a resumed one
        fits = max(n for n in range(1, fits + 1) if math.gcd(*sizes) % n == 0)
        why += ", dividing every batch of the ramp"
    put(f"{stage}.micro_batch_size", fits, why, "default, not tuned")
    share = {"pretrain": 1.0, "sft": 0.3, "dpo": 0.02, "grpo": 0.05}[stage]
    times, beside, paper = beside_adamw(s["optimizer"])
    rate = float(f"{min(advice.learning_rate, MOST_RATE) * share * times:.2g}")
    source = f"{advice.source}; at most {MOST_RATE}"
    why = "from size" if pretraining else f"{share} of pretraining's"
    put(
        f"{stage}.learning_rate",
        rate,
        f"{why}; x {times:g}, {beside}" if beside else why,
        f"{source}; {paper}" if paper else source,
    )
    # Muon's rate does not depend on the width: its update is orthogonal. Only nanochat's rule has one of its own.
    muon, source = advice.muon_learning_rate or 0.02, "Jordan et al. 2024" if not advice.muon_learning_rate else source
    put(
        f"{stage}.muon_learning_rate",
        float(f"{muon * share:.2g}"),
        "Muon's published rate" if pretraining else f"{share} of pretraining's",
        source if pretraining else f"{source}; share not tuned",
    )
    precision = "bf16" if host.fast_bf16 else "fp32"
    put(f"{stage}.precision", precision, "bf16 where the hardware has it, else fp32", "this machine")
    work = 6.0 * n * per_step * float(s["steps"])
    pays = host.compiler and stage in ("pretrain", "sft") and work > 5e12
    reason = "pays for itself on a run this long" if pays else "would cost more time than it saves, or no compiler"
    put(f"{stage}.compile", bool(pays), reason, "about 20 s to compile on a CPU, measured")
    found = []
    if s["precision"] == "float8" and tree["device"] != "cuda":
        found.append(f"precision: float8 is for CUDA, and this runs on {tree['device']}: use bf16, fp16 or fp32")
    if odd := [size for size in sizes if s["compile"] and size % s["micro_batch_size"]]:
        found.append(
            f"micro_batch_size {s['micro_batch_size']} does not divide the ramp's {', '.join(map(str, odd))}, and "
            "blocks are compiled for one shape: give one that does, or leave it at auto"
        )
    problems(stage, found)
