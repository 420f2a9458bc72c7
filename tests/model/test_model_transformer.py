"""What the Transformer promises: causal, isolated, counted, initialised, tied."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model_shapes import ODD_SHAPES, SHAPES, VARIANTS, build, config, tokens

from groundup.errors import UserError
from groundup.infer.cache import KVCache
from groundup.infer.decode import Decoder, Request
from groundup.infer.sample import SamplingParams
from groundup.model.attention import Attention
from groundup.model.config import ModelConfig
from groundup.model.count import count
from groundup.model.flops import train_flops_per_token
from groundup.model.init import init_weights
from groundup.model.obstacles import check_heads
from groundup.model.position import rope_rates, rope_table, rotate
from groundup.model.storage import load_model, save_model
from groundup.model.transformer import Transformer

ALL = {**SHAPES, **ODD_SHAPES, **VARIANTS}
every_shape = pytest.mark.parametrize("shape", ALL)


def logits(model: Transformer, ids: torch.Tensor, **kw: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(ids, **kw))


@every_shape
def test_the_first_loss_is_ln_vocabulary(shape: str) -> None:
    """Bug: weights drawn too wide; the first thousand steps then only unlearn the initialisation."""
    model = init_weights(Transformer(config(vocab_size=2000, **ALL[shape])), 0).eval()
    ids = tokens(8, 33, vocab_size=2000)
    loss = F.cross_entropy(logits(model, ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    by_position = loss.view(8, 32).mean(0)
    assert abs(float(loss.mean()) - math.log(2000)) < 0.05
    assert (by_position - math.log(2000)).abs().max() < 0.5


@every_shape
def test_no_position_sees_the_future(shape: str) -> None:
    """Bug: a mask that is off by one, or transposed; the loss then falls to nearly nothing and means nothing."""
    model, ids = build(**ALL[shape]), tokens(2, 20)
    before = logits(model, ids)
    for t in (1, 10, 19):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 300
        after = logits(model, changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])


@every_shape
def test_packed_documents_do_not_see_each_other(shape: str) -> None:
    """Bug: positions restart at each document, but attention still crosses into the one before."""
    model = build(**ALL[shape])
    a, b, c = tokens(1, 7, 1), tokens(1, 9, 2), tokens(1, 4, 3)
    documents = torch.tensor([[0] * 7 + [1] * 9 + [2] * 4], dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in (7, 9, 4)])[None]
    packed = logits(model, torch.cat([a, b, c], 1), documents=documents, positions=positions)
    other = logits(model, torch.cat([tokens(1, 7, 9), b, c], 1), documents=documents, positions=positions)
    # An expert's tokens are one matmul: with others among them it may round otherwise, elsewhere every bit is equal.
    assert torch.allclose(packed[:, 7:], other[:, 7:], rtol=0, atol=1e-5 if model.config.moe else 0)
    alone = torch.cat([logits(model, part) for part in (a, b, c)], 1)
    assert torch.allclose(packed, alone, atol=1e-4)
    unseparated = logits(model, torch.cat([a, b, c], 1), positions=positions)
    assert not torch.allclose(packed[:, 7:], unseparated[:, 7:], atol=1e-2)  # the mask is what does it


@every_shape
def test_parameters_counted_on_paper_are_those_of_the_model(shape: str) -> None:
    """Bug: a plan that promises another size than is built: biases, QK-norms, a tied head or positions forgotten."""
    model, counted = build(**ALL[shape]), count(config(**ALL[shape]))
    assert counted["total"] == sum(p.numel() for p in model.parameters())

    def part_of(name: str) -> str:
        place = name.split(".")
        if any("norm" in part for part in place):
            return "norm"
        return place[2] if place[0] == "blocks" else "head" if place[0] == "head" else "embedding"

    built = {part: 0 for part in ("embedding", "attention", "mlp", "norm", "head")}
    for name, parameter in model.named_parameters():
        built[part_of(name)] += parameter.numel()
    assert {part: counted[part] for part in built} == built
    assert counted["total"] == sum(counted[k] for k in ("embedding", "attention", "mlp", "norm", "head"))


def test_gpt2_has_its_124_439_808_parameters() -> None:
    """Bug: a GPT-2 arrangement that is not GPT-2's (124,439,808 is what OpenAI's checkpoint holds)."""
    gpt2 = ModelConfig(
        vocab_size=50257, d_model=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, d_ff=3072, context=1024,
        norm="layernorm", position="learned", mlp="gelu_tanh", qk_norm="none", tied=True,
        bias=("qkv", "out", "up", "down", "norm"),
    )  # fmt: skip
    assert count(gpt2)["total"] == 124_439_808
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(gpt2).parameters()) == 124_439_808


def test_flops_are_six_n_plus_attention() -> None:
    """Bug: embeddings counted as matmuls or a tied head not; MFU is then wrong by tens of percent at this size."""
    shape = config(tied=True)
    matmuls = sum(
        m.weight.numel() for m in Transformer(shape).modules() if isinstance(m, torch.nn.Linear)
    )  # the tied head included
    assert train_flops_per_token(shape, 40) == 6 * matmuls + 12 * 3 * 4 * 8 * 40


@every_shape
def test_decoding_with_the_cache_is_the_full_forward(shape: str) -> None:
    """Bug: slot, position or mask off by one; in ragged rows, chunked prompts and single steps alike."""
    model, ids = build(**ALL[shape]), tokens(3, 24)
    full = logits(model, ids)
    lengths = torch.tensor([5, 11, 8])  # ragged prompts, right-padded with junk
    cache = KVCache(model.config, 3, 24)
    prompt = ids[:, :11].clone()
    for row, n in enumerate(lengths.tolist()):
        prompt[row, n:] = 299
    first = logits(model, prompt, positions=torch.arange(11)[None], cache=cache)
    for row, n in enumerate(lengths.tolist()):
        assert torch.allclose(first[row, :n], full[row, :n], atol=1e-4)
    places = lengths.clone()
    for _ in range(13):
        fed = ids.gather(1, places[:, None])
        step = logits(model, fed, positions=places[:, None], cache=cache)[:, 0]
        assert torch.allclose(step, full[torch.arange(3), places], atol=1e-4)
        places += 1
    again = KVCache(model.config, 3, 24)
    for start in range(0, 24, 6):  # several tokens at a time, after others
        place = torch.arange(start, start + 6)[None].expand(3, 6)
        part = logits(model, ids[:, start : start + 6], positions=place, cache=again)
        assert torch.allclose(part, full[:, start : start + 6], atol=1e-4)


def test_cache_rows_that_stay_keep_their_content() -> None:
    """Bug: dropping a finished row shifts the keys of those after it, or growing forgets the slots in use."""
    model, ids = build(), tokens(4, 12)
    cache = KVCache(model.config, 4, 8)
    logits(model, ids[:, :6], positions=torch.arange(6)[None], cache=cache)
    kept = torch.tensor([0, 3])
    cache.keep(kept)
    cache.grow(1, 12)
    assert (cache.batch, cache.length) == (3, 12)
    rows = torch.cat([ids[kept], ids[:1]])
    step = logits(model, rows[:, 6:7], positions=torch.full((3, 1), 6), cache=cache)[:2, 0]
    assert torch.allclose(step, logits(model, ids[kept])[:, 6], atol=1e-4)


def test_a_cache_needs_positions_and_room() -> None:
    """Bug: a cached step without positions decodes everything at place 0; past the end it wraps in silence."""
    model = build()
    with pytest.raises(ValueError, match="positions"):
        model(tokens(1, 1), cache=KVCache(model.config, 1, 4))
    with pytest.raises(ValueError, match="past the cache"):
        model(tokens(1, 1), positions=torch.tensor([[4]]), cache=KVCache(model.config, 1, 4))
    with pytest.raises(ValueError, match="context"):
        model(tokens(1, 41))


def test_rope_scores_depend_on_distance_only() -> None:
    """Bug: halves interleaved in one place and split in another, or k rotated backwards."""
    angles = rope_table(64, *rope_rates(8, 100.0))[:, :, None]  # (2, 64, 1, 8)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 1, 64, 1, 8)
    scores = torch.einsum("bthd,bshd->ts", rotate(q, *angles), rotate(k, *angles))
    for distance in (0, 1, 13):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)
    assert abs(float(scores[5, 0] - scores[0, 5])) > 1e-3  # but on its sign too
    assert torch.allclose(rotate(q, *angles).norm(dim=-1), q.norm(dim=-1), atol=1e-5)


def test_shifting_all_positions_changes_nothing_with_rope() -> None:
    """Bug: absolute position leaks in beside RoPE."""
    model, ids = build(), tokens(2, 12)
    shifted = logits(model, ids, positions=torch.arange(20, 32)[None])
    assert torch.allclose(shifted, logits(model, ids), atol=1e-3)
    learned = build(**SHAPES["gpt2"])
    assert not torch.allclose(
        logits(learned, ids, positions=torch.arange(20, 32)[None]), logits(learned, ids), atol=1e-1
    )


def test_grouped_queries_equal_full_heads_with_repeated_keys() -> None:
    """Bug: query head i uses kv head i % n_kv_heads instead of i // group; trains, and no export agrees."""
    grouped, full = build(n_kv_heads=2), build(n_kv_heads=4)
    full.load_state_dict({k: v for k, v in grouped.state_dict().items() if "qkv" not in k}, strict=False)
    for a, b in zip(grouped.blocks, full.blocks, strict=True):
        q, k, v = a.attention.qkv.weight.split(a.attention.qkv.sizes)
        k, v = (x.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32) for x in (k, v))
        b.attention.qkv.weight.data = torch.cat([q, k, v])
    ids = tokens(2, 15)
    assert torch.allclose(logits(grouped, ids), logits(full, ids), atol=1e-4)


def test_attention_is_softmax_of_scaled_scores() -> None:
    """Bug: scores not divided by sqrt(head_dim), heads joined in another order. Against the formula, by hand."""
    shape = config(qk_norm="none", n_kv_heads=4, n_layers=1)
    attention = Attention(shape, 0)
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q, k, v = attention.qkv(x)[0].split([32, 32, 32], -1)
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            scores = q[:, part] @ k[:, part].T / 8**0.5
            scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[:, part])
        expected = attention.out(torch.cat(heads, -1))
        found = attention(x, None, None, torch.arange(6)[None], None)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_tied_embeddings_are_one_storage(tmp_path: Any) -> None:
    """Bug: after load, a cast or a step, the head and the embedding are two tensors that drift apart."""
    model = build()
    assert model.head.weight.data_ptr() == model.embed.weight.data_ptr()
    save_model(tmp_path / "m", model, {"tokenizer_hash": "x"})
    loaded = load_model(tmp_path / "m", torch.bfloat16)
    assert loaded.head.weight.data_ptr() == loaded.embed.weight.data_ptr()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded.logits(loaded(tokens(1, 4))).sum().backward()
    optimizer.step()
    assert torch.equal(loaded.head.weight, loaded.embed.weight)
    untied = build(tied=False)
    assert untied.head.weight.data_ptr() != untied.embed.weight.data_ptr()


@every_shape
def test_a_model_on_disk_comes_back_equal(shape: str, tmp_path: Any) -> None:
    """Bug: a parameter or a buffer that is not saved comes back as whatever the constructor left there."""
    model, ids = build(**ALL[shape]), tokens(2, 9)
    save_model(tmp_path / "m", model, {})
    assert torch.equal(logits(load_model(tmp_path / "m").eval(), ids), logits(model, ids))


def test_damaged_model_folders_are_told(tmp_path: Any) -> None:
    """Bug: weights of another shape loaded in part, or a raw traceback for a truncated file."""
    folder = tmp_path / "m"
    save_model(folder, build(), {})
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(folder)
    save_model(folder, build(n_layers=2), {})
    (tmp_path / "other").mkdir()
    save_model(tmp_path / "other", build(), {})
    (folder / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(UserError, match="do not fit"):
        load_model(folder)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tmp_path / "none")


@every_shape
def test_nothing_is_left_uninitialised_after_the_meta_device(shape: str) -> None:
    """Bug: a parameter or buffer keeps the memory's old content; poisoned here with NaN so that it shows."""
    with torch.device("meta"):
        model = Transformer(config(**ALL[shape]))
    model.to_empty(device="cpu")
    model.tie()  # to_empty gives each name its own memory
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(math.nan)
    init_weights(model, 3)
    assert all(bool(t.isfinite().all()) for t in [*model.parameters(), *model.buffers()])
    direct = init_weights(Transformer(config(**ALL[shape])), 3)
    ids = tokens(2, 10)
    assert torch.equal(logits(model.eval(), ids), logits(direct.eval(), ids))


def test_the_seed_alone_decides_the_weights() -> None:
    """Bug: the global random state decides; a resumed or a second run starts from other weights."""
    torch.manual_seed(1)
    first = init_weights(Transformer(config()), 5).state_dict()
    torch.manual_seed(2)
    second = init_weights(Transformer(config()), 5).state_dict()
    other = init_weights(Transformer(config()), 6).state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    blocks = [first[f"blocks.{n}.mlp.down.weight"] for n in range(3)]
    assert not torch.equal(blocks[0], blocks[1])
    assert float(blocks[0].std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.1)


@every_shape
def test_every_parameter_gets_a_gradient(shape: str) -> None:
    """Bug: a module that is built but not on the way from tokens to loss."""
    model, ids = build(**ALL[shape]), tokens(4, 40)
    F.cross_entropy(model.logits(model(ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten()).backward()
    # A bias on k shifts all scores of a query alike, which softmax does not see: its gradient is only rounding.
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@every_shape
def test_a_cast_reaches_the_weights_alone(shape: str, tmp_path: Any) -> None:
    """Bug: angles, loads and balance biases in bf16: 1024 tokens counted as 1000, biases that stop at 0.5."""
    model, tables = build(**ALL[shape]), dict(build(**ALL[shape]).named_buffers())
    save_model(tmp_path / "m", model, {})
    for cast in (model.to(torch.bfloat16), load_model(tmp_path / "m", torch.bfloat16), build(**ALL[shape]).half()):
        assert all(p.dtype in (torch.bfloat16, torch.float16) for p in cast.parameters())
        assert all(torch.equal(b, tables[name]) and b.dtype == torch.float32 for name, b in cast.named_buffers())
        assert (cast.head.weight is cast.embed.weight) == cast.config.tied
        assert logits(cast, tokens(2, 9)).isfinite().all()


@every_shape
def test_tables_are_made_where_the_weights_are(shape: str) -> None:
    """Bug: init_weights after to_empty(device="cuda") leaves angles and loads on the CPU: the first step fails."""
    model = build(**ALL[shape]).to("meta")
    model.reset_buffers()
    assert all(b.is_meta for b in model.buffers())


def test_a_row_decodes_as_alone_where_the_length_decides() -> None:
    """Bug: with dynamic scaling a short prompt is filled in with the base of the longest prompt beside it."""
    model = build(context=64, rope_scaling={"kind": "dynamic", "factor": 4.0, "original_context": 16})
    short, long = tokens(1, 10, 1)[0].tolist(), tokens(1, 40, 2)[0].tolist()

    class Words:
        vocab_size = 300

        def decode(self, ids: list[int]) -> str:
            return ""

    def logprobs(*prompts: list[int]) -> list[float]:
        decoder = Decoder(model, Words(), torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
        decoder.add([Request(i, p, SamplingParams(max_new_tokens=5, temperature=0)) for i, p in enumerate(prompts)])
        found = {}
        while decoder.n_alive:
            found |= dict(decoder.step())
        return found[0].logprobs

    assert logprobs(short, long) == pytest.approx(logprobs(short), abs=1e-5)


def test_dropout_is_off_in_eval_and_on_in_training() -> None:
    """Bug: a dropout that nothing reads, or that also runs in evaluation."""
    model, ids = build(dropout=0.5), tokens(2, 10)
    assert torch.equal(logits(model, ids), logits(model, ids))
    model.train()
    assert not torch.equal(logits(model, ids), logits(model, ids))


def test_impossible_shapes_are_told_with_the_nearest_that_work() -> None:
    """Bug: a bare shape error from deep inside, or a width that is silently rounded."""
    with pytest.raises(UserError, match=r"n_heads 4 is not divisible by n_kv_heads 3 \(nearest n_kv_heads: 2 or 4\)"):
        Transformer(config(n_kv_heads=3))
    with pytest.raises(UserError, match="unknown field heads"):
        ModelConfig.from_dict({**config().to_dict(), "heads": 3})
    for wrong in (None, 3, "qkv"):
        with pytest.raises(UserError, match=r"bias must be a list of some of qkv, out, up.* \(got "):
            Transformer(ModelConfig.from_dict({**config().to_dict(), "bias": wrong}))
    (message,) = check_heads(100, 3)
    assert "100/2" in message and "99/3" in message and "102/3" in message
    assert check_heads(99, 3) == []
