"""The engine says what the model says: cached = not cached, batched = single, streamed = whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from infer_models import CONTEXT, SHAPES, build

from groundup.errors import UserError
from groundup.infer.decode import Decoder, Request
from groundup.infer.engine import Engine, SamplingParams
from groundup.model.loss import token_logprobs
from groundup.model.transformer import Transformer
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer


def some_prompts(n: int, vocab_size: int, longest: int = 20, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(n)]


@torch.no_grad()
def greedy_without_cache(model: Transformer, prompt: list[int], said: list[int]) -> list[int]:
    """The most likely token at each place of `said`, from one full forward pass; equal to it if it was greedy."""
    logits = model.logits(model(torch.tensor([prompt + said[:-1]])))
    return logits[0, len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_with_a_cache_is_the_full_forward(shape: str, tokenizer: Tokenizer) -> None:
    """Bug: a cache slot, a position or a mask off by one, in a ragged batch up to the end of the context."""
    model = build(tokenizer.vocab_size, **SHAPES[shape])
    prompts = [*some_prompts(9, tokenizer.vocab_size), [3] * (CONTEXT - 1), [5]]
    out = Engine(model, tokenizer).generate(prompts, SamplingParams(max_new_tokens=CONTEXT, temperature=0))
    for prompt, completion in zip(prompts, out, strict=True):
        assert completion.ids == greedy_without_cache(model, prompt, completion.ids)
        assert len(prompt) + len(completion.ids) == CONTEXT
        assert completion.finish_reason == "length" and completion.n_prompt == len(prompt)


def mixed(n: int, tokenizer: Tokenizer) -> list[SamplingParams]:
    rng = random.Random(3)
    return [
        SamplingParams(
            max_new_tokens=rng.randint(1, 30),
            temperature=rng.choice([0, 0.7, 1.0, 1.4]),
            top_k=rng.choice([0, 0, 5]),
            top_p=rng.choice([1.0, 0.9]),
            seed=1000 + i,
            stop_ids=tuple(rng.sample(range(tokenizer.vocab_size), rng.choice([0, 2, 40]))),
            stop=rng.choice([(), ("e",), ("a", "on")]),
        )
        for i in range(n)
    ]


def test_batched_is_single_seed_by_seed(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: a row's text depends on its company: on padding, on rows that joined or left, on who is listened to."""
    prompts = some_prompts(18, tokenizer.vocab_size)
    params = mixed(18, tokenizer)
    single = [Engine(model, tokenizer).generate([p], [s])[0] for p, s in zip(prompts, params, strict=True)]
    assert {c.finish_reason for c in single} == {"stop", "length"}
    heard = [""] * 18
    counted = [0] * 18

    def hear(row: int, text: str) -> None:
        heard[row] += text
        counted[row] += 1

    together = Engine(model, tokenizer).generate(prompts, params)
    in_turns = Engine(model, tokenizer, max_rows=4).generate(prompts, params, on_token=hear)
    for one, a, b in zip(single, together, in_turns, strict=True):
        assert one.ids == a.ids == b.ids
        assert one.text == a.text == b.text
        assert one.finish_reason == a.finish_reason == b.finish_reason
        assert one.logprobs == pytest.approx(a.logprobs, abs=1e-4) and len(one.logprobs) == len(one.ids)
    assert heard == [c.text for c in single]
    assert counted == [len(c.ids) for c in single]


def test_logprobs_are_the_trainers(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: sampler and trainer disagree on temperature or position; GRPO's ratio is then not 1 at step 0."""
    prompts = some_prompts(8, tokenizer.vocab_size)
    params = [
        SamplingParams(max_new_tokens=15, temperature=t, top_p=0.8, seed=i) for i, t in enumerate([0.6, 1, 1.3, 0] * 2)
    ]
    for prompt, sampling, out in zip(prompts, params, Engine(model, tokenizer).generate(prompts, params), strict=True):
        tokens = torch.tensor([prompt + out.ids])
        targets = tokens[:, 1:].clone()
        targets[:, : len(prompt) - 1] = -100
        with torch.no_grad():
            expected = token_logprobs(model, model(tokens[:, :-1]), targets, temperature=sampling.temperature or 1.0)
        assert out.logprobs == pytest.approx(expected[0, len(prompt) - 1 :].tolist(), abs=1e-4)


def test_equal_prompts_differ_and_the_group_shares_its_prefill(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: one seed for all rows makes every answer of a GRPO group the same; its advantages are all zero."""
    prompt = some_prompts(1, tokenizer.vocab_size, longest=12)[0] * 2
    params = SamplingParams(max_new_tokens=12, seed=4)
    group = Engine(model, tokenizer).generate([prompt] * 6, params)
    assert len({tuple(c.ids) for c in group}) == 6
    assert group[0].ids == Engine(model, tokenizer).generate([prompt], params)[0].ids
    assert [c.ids for c in group] == [c.ids for c in Engine(model, tokenizer).generate([prompt] * 6, params)]


def test_stop_id_is_in_the_ids_and_not_in_the_text(says: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    """Bug: the trained terminator cut from the ids (GRPO never rewards ending), or shown as text."""
    engine = says("ab", tokenizer.end, "never")
    for on_token in (None, lambda row, text: None):
        out = engine.generate([[0]], SamplingParams(stop_ids=(tokenizer.end, tokenizer.eos)), on_token)[0]
        assert out.ids[-1] == tokenizer.end and len(out.ids) == 3
        assert out.text == "ab" and out.finish_reason == "stop"
    letter = engine.generate([[0]], SamplingParams(stop_ids=(out.ids[1],)))[0]  # an ordinary token as stop id
    assert letter.text == "a" and len(letter.ids) == 2


def test_other_specials_are_not_text(says: Callable[..., Engine], tokenizer: Tokenizer) -> None:
    """Bug: <|user|> in the answer; or a special that is no stop id ends the row."""
    engine = says("a", tokenizer.user, "b")
    assert engine.generate([[0]], SamplingParams(max_new_tokens=3))[0].text == "ab"
    assert "".join(engine.stream([0], SamplingParams(max_new_tokens=3))) == "ab"


def test_stop_strings_do_not_leak_into_a_stream(says: Callable[..., Engine]) -> None:
    """Bug: "A A B" holds "A B"; its first letters are streamed, or the match across tokens is missed."""
    engine = says("xA A B and more")
    stream = engine.stream([0], SamplingParams(stop=("A B",)))
    pieces = list(stream)
    assert "".join(pieces) == "xA " and all(pieces)
    assert stream.completion is not None and stream.completion.finish_reason == "stop"
    assert stream.completion.text == "xA " and len(stream.completion.ids) == len("xA A B")
    whole = engine.generate([[0]], SamplingParams(stop=("A B",)))[0]
    assert whole == stream.completion


def test_a_stream_keeps_characters_whole(says: Callable[..., Engine]) -> None:
    """Bug: an emoji of four byte tokens streamed as four U+FFFD; or half of one lost when the length ends it."""
    pieces = list(says("né🙂").stream([0], SamplingParams()))
    assert pieces == ["n", "é", "🙂"]
    cut = says("a🙂").stream([0], SamplingParams(max_new_tokens=3))
    assert "".join(cut) == "a\ufffd" == cut.completion.text  # type: ignore[union-attr]
    assert says("a🙂").generate([[0]], SamplingParams(max_new_tokens=3))[0].text == "a\ufffd"


def test_returning_false_cancels_that_row_alone(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a client that left keeps its cache rows to the end; or takes its neighbours with it."""
    batches = []
    step = Decoder.step

    def watched(decoder: Decoder) -> Any:
        batches.append(decoder.cache.batch)
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", watched)
    prompts = some_prompts(4, tokenizer.vocab_size, longest=5)
    params = SamplingParams(max_new_tokens=20, temperature=0)
    seen = [0] * 4

    def listen(row: int, text: str) -> bool | None:
        seen[row] += 1
        return False if row == 2 and seen[2] == 3 else None

    out = Engine(model, tokenizer).generate(prompts, params, on_token=listen)
    assert [c.finish_reason for c in out] == ["length", "length", "cancelled", "length"]
    assert len(out[2].ids) == 3 and seen == [20, 20, 3, 20]
    assert batches == [4] * 3 + [3] * 17
    for i in (0, 1, 3):
        assert out[i].ids == greedy_without_cache(model, prompts[i], out[i].ids)


def test_rows_that_ended_leave_the_batch_and_others_join(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: every row is computed until the longest ends, or a wave waits for its slowest row."""
    work = []
    step = Decoder.step

    def watched(decoder: Decoder) -> Any:
        work.append(len(decoder.rows))
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", watched)
    lengths = [1, 1, 1, 30, 1, 1, 1, 30]
    params = [SamplingParams(max_new_tokens=n, seed=i) for i, n in enumerate(lengths)]
    ended = []
    out = Engine(model, tokenizer, max_rows=4).generate(
        [[7]] * 8, params, on_finish=lambda row, completion: ended.append((row, len(completion.ids)))
    )
    assert [len(c.ids) for c in out] == lengths
    assert sum(work) == sum(lengths)  # with nothing wasted here
    assert sorted(ended) == list(enumerate(lengths)) and ended[-1][0] in (3, 7)


def test_a_row_that_is_done_stays_inside_its_room(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: a row that ended, but is not dropped yet, goes on past its cache and its part of the results."""
    decoder = Engine(model, tokenizer)._decoder()
    decoder.add([Request(0, [7], SamplingParams(max_new_tokens=9))])
    done = dict(completion for _ in range(8) for completion in decoder.step())
    decoder.add([Request(i, [7], SamplingParams(max_new_tokens=10, seed=i)) for i in range(1, 8)])
    while decoder.n_alive:
        done.update(decoder.step())
    assert [len(done[i].ids) for i in range(8)] == [9] + [10] * 7


def test_closing_a_stream_cancels_it(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: a stream that nobody reads any more goes on decoding, or ends without saying how."""
    engine = Engine(model, tokenizer)
    stream = engine.stream([7, 8], SamplingParams(max_new_tokens=40, seed=2))
    first = next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.completion is not None and stream.completion.finish_reason == "cancelled"
    assert stream.completion.text == first and len(stream.completion.ids) < 40
    unread = engine.stream([7], SamplingParams())
    unread.close()
    assert unread.completion is not None and unread.completion.ids == []


def test_a_stream_leaves_torch_as_it_was_between_two_pieces(tokenizer: Tokenizer) -> None:
    """Bug: inference mode leaks out of the generator; a training step between two pieces records no gradient."""
    model = build(tokenizer.vocab_size, dropout=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    stream = Engine(model, tokenizer).stream([7], SamplingParams(max_new_tokens=40, seed=1))
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert [module.training for module in model.modules()] == modes
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()
    list(stream)
    assert [module.training for module in model.modules()] == modes


def test_dropout_is_off_and_modes_come_back(tokenizer: Tokenizer) -> None:
    """Bug: sampling from a model in training mode draws with dropout; or leaves it in eval mode for good."""
    model = build(tokenizer.vocab_size, dropout=0.5).train()
    engine = Engine(model, tokenizer)
    params = SamplingParams(max_new_tokens=20, temperature=0)
    first, second = (engine.generate([[7]], params)[0].ids for _ in range(2))
    assert first == second == greedy_without_cache(model.eval(), [7], first)
    model.train()

    def fail(row: int, text: str) -> None:
        raise RuntimeError("the listener failed")

    with pytest.raises(RuntimeError, match="listener"):
        engine.generate([[7]], params, on_token=fail)
    assert all(module.training for module in model.modules())


def test_sampling_draws_no_global_random_number(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: samples taken during training shift its random stream, and a resumed run is not the unbroken one."""
    before = torch.get_rng_state(), random.getstate()
    Engine(model, tokenizer).generate([[7]] * 3, SamplingParams(max_new_tokens=5))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_autocast_weights_do_not_outlive_the_rollout(tokenizer: Tokenizer) -> None:
    """Bug: weights that autocast cast in inference mode stay in its cache, and the next training step in the same
    autocast region fails or trains nothing."""
    model = build(tokenizer.vocab_size)
    with torch.autocast("cpu", torch.bfloat16):
        Engine(model, tokenizer).generate([[7, 8, 9]], SamplingParams(max_new_tokens=3))
        model.logits(model(torch.tensor([[1, 2, 3]]))).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_another_dtype_is_a_copy(tokenizer: Tokenizer) -> None:
    """Bug: sampling in bf16 rounds the weights that are being trained."""
    model = build(tokenizer.vocab_size)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    engine = Engine(model, tokenizer, dtype=torch.bfloat16)
    assert engine.generate([[7, 8]], SamplingParams(max_new_tokens=4))[0].ids
    assert engine._decoder().cache.k.dtype == torch.bfloat16
    assert engine.model.head.weight is engine.model.embed.weight
    assert all(v.dtype == torch.float32 and torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_the_engine_sees_the_weights_of_now(tokenizer: Tokenizer) -> None:
    """Bug: rollouts from stale weights: the policy that is sampled is not the one that is trained."""
    model = build(tokenizer.vocab_size)
    engine = Engine(model, tokenizer)
    params = SamplingParams(max_new_tokens=15, temperature=0)
    before = engine.generate([[7]], params)[0].ids
    with torch.no_grad():
        model.embed.weight.copy_(build(tokenizer.vocab_size, seed=1).embed.weight)
    after = engine.generate([[7]], params)[0].ids
    assert before != after == greedy_without_cache(model, [7], after)


def test_prompts_that_cannot_be_continued_are_told_all_at_once(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: a prompt as long as the context is cut in silence, an empty one or a foreign id crashes deep inside."""
    engine = Engine(model, tokenizer)
    with pytest.raises(UserError) as error:
        engine.generate([[], [1] * CONTEXT, [tokenizer.vocab_size], [1]], SamplingParams())
    for part in ("prompt 0 is empty", f"prompt 1 has {CONTEXT} tokens", "prompt 2 has a token id outside"):
        assert part in str(error.value)
    with pytest.raises(UserError):
        engine.stream([1] * CONTEXT, SamplingParams())  # at once, not at the first piece
    assert engine.generate([], SamplingParams()) == []
    with pytest.raises(ValueError, match="2 prompts but 1"):
        engine.generate([[1], [2]], [SamplingParams()])


def test_chat_prompt_is_what_training_saw(model: Transformer, tokenizer: Tokenizer) -> None:
    """Bug: serving renders a conversation otherwise than training did (82% against 0% in one report)."""
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "<|end|> hi"}]
    ids = Engine(model, tokenizer).chat_prompt(messages)
    answered = render(tokenizer, [*messages, {"role": "assistant", "content": "Hello."}])
    assert ids == answered.ids[: len(ids)] and not any(answered.mask[: len(ids)]) and answered.mask[len(ids)]
