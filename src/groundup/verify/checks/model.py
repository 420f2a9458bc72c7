"""Does the model see what it may see, and nothing else? Does every weight matter, and is each what it seems?"""

from __future__ import annotations

import torch

from groundup.infer.cache import KVCache
from groundup.model import count as counting
from groundup.model import init, storage
from groundup.model.config import ModelConfig
from groundup.model.moe import ExpertMLP
from groundup.model.transformer import Transformer
from groundup.verify import rig
from groundup.verify.check import Measurement, check, violations
from groundup.verify.subject import Subject


@check(
    "causality",
    "locality",
    "model",
    bug="A position sees later tokens: training loss falls wonderfully and the model cannot write.",
    remedy="See attention_mask in model/attention.py; is_causal must hold wherever no mask is given.",
    reference="huggingface/transformers issues 48745, 48748; karpathy/nanochat issue 844",
)
def causality(subject: Subject) -> Measurement:
    """Positions whose logits change, in any bit, when only later tokens do; plain rows and packed documents.

    A masked score becomes exp(-inf) = 0 exactly, so equality is of bits, not up to rounding (`rig.differing`: but for
    experts). That the changed position itself does change is counted too: otherwise a model deaf to its input would
    pass.
    """
    model = subject.build_model()
    batch = rig.random_batch(subject, rows=3, length=24, seed=3)
    other = rig.random_tokens(subject, 3, 24, seed=4)
    found, looked = [], 0
    for name, given in (("plain", {}), ("packed", {"documents": batch.documents, "positions": batch.positions})):
        before = rig.logits_of(model, batch.tokens, **given)
        for cut in (1, 7, 12, 23):
            changed = torch.where(
                torch.arange(24) < cut, batch.tokens, (batch.tokens + 1 + other) % subject.micro.vocab_size
            )
            changed[:, cut] = (batch.tokens[:, cut] + 1) % subject.micro.vocab_size
            after = rig.logits_of(model, changed, **given)
            leaks = rig.differing(subject.micro, before[:, :cut], after[:, :cut]).any(-1).any(0)
            found += [f"{name}: position {int(t)} sees token {cut} or later" for t in leaks.nonzero()[:, 0]]
            if bool((before[:, cut] == after[:, cut]).all()):
                found.append(f"{name}: token {cut} changes nothing")
            looked += cut + 1
    return violations(found, looked)


@check(
    "documents-isolated",
    "locality",
    "model",
    bug="Packed documents attend to each other: an answer is learned from another conversation's text.",
    remedy="Pass batch.documents to the model, compare them in attention_mask; positions alone do not separate.",
    reference="alex-hh/profam issue 495; huggingface/nanoVLM pull 204; MeetKai/functionary issue 265",
)
def documents_isolated(subject: Subject) -> Measurement:
    """Positions of documents B and C whose logits change, in any bit, when only document A does (A, B, C packed)."""
    model = subject.build_model()
    tokens = rig.random_tokens(subject, 2, 30, seed=5)
    documents = torch.tensor([0] * 10 + [1] * 12 + [2] * 8).expand(2, -1).int()
    positions = torch.cat([torch.arange(n) for n in (10, 12, 8)]).expand(2, -1)
    changed = tokens.clone()
    changed[:, :10] = (tokens[:, :10] + 1) % subject.micro.vocab_size
    before = rig.logits_of(model, tokens, documents=documents, positions=positions)
    after = rig.logits_of(model, changed, documents=documents, positions=positions)
    moved = rig.differing(subject.micro, before, after).any(-1).any(0)
    found = [f"position {int(t)} sees another document" for t in moved[10:].nonzero()[:, 0]]
    if not bool(moved[:10].all()):
        found.append("document A does not see itself")
    return violations(found, 30)


@check(
    "packed-equals-alone",
    "invariance",
    "model",
    bug="A document reads differently when packed: positions run on from its neighbour, or the mask cuts too much.",
    remedy="Positions must restart at 0 in each document (data/load.py, tune/pack.py) and reach the model.",
    reference="hiyouga/LlamaFactory pull 7318; huggingface/nanoVLM issue 201",
)
def packed_equals_alone(subject: Subject) -> Measurement:
    """Largest difference between a document's logits when packed behind another, and alone at positions 0, 1, ...

    The same numbers are summed in another order, hence the tolerance of rounding (`rig.tolerance`).
    """
    model = subject.build_model()
    tokens = rig.random_tokens(subject, 2, 30, seed=6)
    documents = torch.tensor([0] * 10 + [1] * 20).expand(2, -1).int()
    positions = torch.cat([torch.arange(10), torch.arange(20)]).expand(2, -1)
    packed = rig.logits_of(model, tokens, documents=documents, positions=positions)[:, 10:]
    alone = rig.logits_of(model, tokens[:, 10:])
    return Measurement(rig.largest(packed - alone), rig.tolerance(subject.micro, rig.largest(alone)))


@check(
    "cached-decode-equals-forward",
    "invariance",
    "model",
    bug="Decoding with the cache computes another function than training did: the model is right and chats wrongly.",
    remedy="Check positions handed to the model, rotation of keys before they are cached, and the cache's mask.",
    reference=(
        "lucidrains/x-transformers issue 219; mistralai/mistral-inference issue 88; "
        "lucidrains/native-sparse-attention-pytorch issue 20"
    ),
)
def cached_decode_equals_forward(subject: Subject) -> Measurement:
    """Largest difference between cached and full-forward logits, row by row, over a ragged batch.

    Rows of 3, 9 and 14 tokens are padded on the right, prefilled at once and decoded 6 tokens further, each row at
    its own positions. Rounding only (`rig.tolerance`): sums over keys run in another order.
    """
    model = subject.build_model()
    lengths, more = torch.tensor([3, 9, 14]), 6
    tokens = rig.random_tokens(subject, 3, int(lengths.max()) + more, seed=7)
    full = rig.logits_of(model, tokens)
    width = int(lengths.max())
    cache = KVCache(model.config, 3, width + more)
    prefilled = rig.logits_of(model, tokens[:, :width], positions=torch.arange(width).expand(3, -1), cache=cache)
    rows = torch.arange(3)
    worst = max(rig.largest(prefilled[r, :n] - full[r, :n]) for r, n in enumerate(lengths.tolist()))
    for step in range(more):
        at = lengths + step
        # What stands in the padding was cached too; each row overwrites it as it goes.
        new = rig.logits_of(model, tokens[rows, at][:, None], positions=at[:, None], cache=cache)
        worst = max(worst, rig.largest(new[:, 0] - full[rows, at]))
    return Measurement(worst, rig.tolerance(subject.micro, rig.largest(full)))


@check(
    "causality-with-cache",
    "locality",
    "model",
    bug="A short row of a batch sees its padding, or what an earlier and longer request left in the cache.",
    remedy="With a cache, slot s may be seen from position p only if s <= p (attention_mask in model/attention.py).",
    reference="Mikyx-1/TinyLLM issue 17; unslothai/unsloth issue 1066; hyprstream/hyprstream pull 1521",
)
def causality_with_cache(subject: Subject) -> Measurement:
    """Logits that change, in any bit, when only padding or stale slots do: a masked weight is exactly 0."""
    model = subject.build_model()
    tokens = rig.random_tokens(subject, 1, 12, seed=8)
    found, kept = [], []
    for filler in (0, 1):
        cache = KVCache(model.config, 1, 24)
        stale = (rig.random_tokens(subject, 1, 24, seed=9) + filler) % subject.micro.vocab_size
        rig.logits_of(model, stale, positions=torch.arange(24)[None], cache=cache)  # an earlier, longer request
        padded = torch.cat([tokens[:, :6], stale[:, :4]], dim=1)
        prefilled = rig.logits_of(model, padded, positions=torch.arange(10)[None], cache=cache)[:, :6]
        step = rig.logits_of(model, tokens[:, 6:7], positions=torch.tensor([[6]]), cache=cache)
        kept.append((prefilled, step))
    for name, a, b in zip(("prefill", "decode"), *kept, strict=True):
        if rig.differing(subject.micro, a, b).any():
            found.append(f"{name} sees slots beyond its position")
    return violations(found, 2)


@check(
    "every-parameter-gets-gradient",
    "sensitivity",
    "model",
    bug="A weight is computed but not used (or detached): it stays at its first value for the whole run.",
    remedy="Follow the named parameter through forward(); look for detach, no_grad, or a branch not taken.",
    reference="jingyaogong/minimind issue 858, pull 859; Tencent-Hunyuan/UniRL pull 207",
)
def every_parameter_gets_gradient(subject: Subject) -> Measurement:
    """Parameters, by their pieces (q, k, v; gate, up; each expert), whose gradient is None or all zero.

    An expert to which fewer than 8 of the 256 tokens were sent is left out: none of them may be scored, one in eight is
    not.
    """
    model = subject.build_model()
    batch = rig.random_batch(subject, rows=8, length=32, seed=10)
    subject.objective(model, batch).total.backward()
    found, looked = [], 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            found.append(f"{name} has none")
            looked += 1
            continue
        pieces = rig.pieces(model, name, parameter.grad)
        owner = model.get_submodule(name.rpartition(".")[0])
        for n, (part, piece) in enumerate(pieces):
            if isinstance(owner, ExpertMLP) and parameter.ndim == 3:
                expert = n * owner.moe.n_experts // len(pieces)
                if owner.load[expert] < 8:
                    continue
            looked += 1
            if not bool(piece.any()):
                found.append(f"{part} is all zero")
    return violations(found, looked)


@check(
    "tied-is-one-storage",
    "identity",
    "model",
    bug="Embedding and head drift apart (or an untied pair is shared): after loading, moving or copying, silently.",
    remedy="Call model.tie() after anything that replaces a parameter; see model/storage.py.",
    reference="facebookresearch/lingua pull 75; verl-project/verl issue 7834; NVIDIA-NeMo/Automodel pull 2213",
)
def tied_is_one_storage(subject: Subject) -> Measurement:
    """Moments (built, initialised, loaded, cast, copied, in the optimizer's list) at which the head's storage is
    shared when the recipe says untied, or is not when it says tied."""
    import copy

    found = []
    model = subject.build_model()
    moments = {
        "after init": model,
        "after deepcopy": copy.deepcopy(model),
        "after a cast": copy.deepcopy(model).double(),
    }
    with subject.scratch() as folder:
        storage.save_model(folder, model, {})
        moments["after save and load"] = storage.load_model(folder)
    for name, one in moments.items():
        if (one.head.weight.data_ptr() == one.embed.weight.data_ptr()) != subject.micro.tied:
            found.append(f"{name}: {'two storages' if subject.micro.tied else 'one storage'}")
    loaded = moments["after save and load"]
    if not all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    ):
        found.append("the loaded weights are not those that were saved")
    return violations(found, len(moments) + 1)


@check(
    "parameters-counted-on-paper",
    "identity",
    "model",
    bug="The model that is built is not the one that was planned: FLOPs, tokens, memory and MFU are all off.",
    remedy="Compare model/count.py with the named module, term by term.",
    reference=(
        "foundation-model-stack/fms-fsdp issue 67; facebookresearch/fairseq issue 4259; tenstorrent/tt-metal pull 50114"
    ),
)
def parameters_counted_on_paper(subject: Subject) -> Measurement:
    """Sum over the parts (embedding, attention, mlp, norm, head) of |counted on paper - held by the built model|.

    Also of what one token uses, without the experts it is not sent to. For the micro model and, on the meta device,
    for the recipe's real size. Integers: equality.
    """
    found, configs = [], {"micro": subject.micro}
    if subject.config is not None:
        configs["real"] = subject.config
    for name, config in configs.items():
        paper, built = counting.count(config), _held(config)
        found += [
            f"{name} {part}: {paper[part]:,} on paper, {built[part]:,} built"
            for part in built
            if paper[part] != built[part]
        ]
        total = sum(built.values())
        if paper["total"] != total:
            found.append(f"{name}: total {paper['total']:,} on paper, {total:,} built")
        if paper["active"] != total - _idle(config):
            found.append(f"{name}: {paper['active']:,} active on paper, {total - _idle(config):,} built")
    return violations(found, 7 * len(configs))


def _held(config: ModelConfig) -> dict[str, int]:
    """Elements of each part's parameters in a built model; named_parameters() gives a tied head once."""
    with torch.device("meta"):
        model = Transformer(config)
    parts = {"embedding": 0, "attention": 0, "mlp": 0, "norm": 0, "head": 0}
    for name, parameter in model.named_parameters():
        if "norm" in name:
            part = "norm"
        elif "embed" in name or name.startswith("relative_bias"):
            part = "embedding"
        else:
            part = next((p for p in ("attention", "mlp") if f".{p}." in name), "head")
        parts[part] += parameter.numel()
    return parts


def _idle(config: ModelConfig) -> int:
    """Elements of the experts that one token is not sent to."""
    with torch.device("meta"):
        model = Transformer(config)
    stacks = [p for name, p in model.named_parameters() if p.ndim == 3 and ".mlp." in name]
    return sum(p.numel() // p.shape[0] * (p.shape[0] - config.moe.top_k) for p in stacks) if config.moe else 0


@check(
    "meta-init-complete",
    "identity",
    "model",
    bug="A parameter or buffer that came from the meta device is never written: it holds whatever memory held.",
    remedy="init_weights must tie again, fill every parameter and recompute every buffer (model/init.py).",
    reference="huggingface/transformers issues 45902, 48892; NovaSky-AI/SkyRL issue 1709",
)
def meta_init_complete(subject: Subject) -> Measurement:
    """Tensors that differ, in any bit, between a model initialised in place and one that came from the meta device.

    What `to_empty` allocates is filled with NaN first, so that luck cannot fill it with zeros.
    """
    expected = init.init_weights(Transformer(subject.micro), 0)
    with torch.device("meta"):
        model = Transformer(subject.micro)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    init.init_weights(model, 0)
    theirs = {**dict(model.state_dict()), **dict(model.named_buffers())}
    ours = {**dict(expected.state_dict()), **dict(expected.named_buffers())}
    found = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    if (model.head.weight is model.embed.weight) != subject.micro.tied:
        found.append("head.weight is no longer tied" if subject.micro.tied else "head.weight became tied")
    return violations(found, len(ours))


@check(
    "eval-is-deterministic",
    "invariance",
    "model",
    bug="Dropout stays on in evaluation (noisy, pessimistic scores), or is off in training and the knob does nothing.",
    remedy="Call model.eval() around evaluation and model.train() in the loop; see _quietly in train/loop.py.",
    reference="pytorch/pytorch issue 124464; meta-pytorch/torchtune issue 1791; coleygroup/ms-pred issue 38",
)
def eval_is_deterministic(subject: Subject) -> Measurement:
    """Of four: two forwards in eval mode are bit-equal; dropout 0.3 in eval is bit-equal to dropout 0; in training
    mode it is not; the loop's validation callback runs in eval mode, and training mode is back after it."""
    from groundup.train import loop

    noisy, calm = subject.build_model(dropout=0.3), subject.build_model(dropout=0.0)
    tokens = rig.random_tokens(subject, 2, 16, seed=11)
    found = []
    if not torch.equal(rig.logits_of(noisy, tokens), rig.logits_of(noisy, tokens)):
        found.append("two forwards in eval mode differ")
    if not torch.equal(rig.logits_of(noisy, tokens), rig.logits_of(calm, tokens)):
        found.append("dropout changes the result in eval mode")
    noisy.train()
    if torch.equal(rig.logits_of(noisy, tokens), rig.logits_of(noisy, tokens)):
        found.append("dropout does nothing in training mode")
    with subject.scratch() as folder:
        job = rig.make_job(subject, noisy, rig.Fixed([]), subject.section(), folder)
        inside = loop._quietly(job, lambda: noisy.training)
    if inside or not noisy.training:
        found.append("validation does not run in eval mode" if inside else "training mode is not back after validation")
    return violations(found, 4)
