"""One draw: the right distribution, from the row's own seed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from groundup.errors import UserError
from groundup.infer.sample import Sampler, SamplingParams, _signed, _splitmix, row_seed, threshold, uniform

N = 20_000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, -0.5])


def draw(logits: torch.Tensor, n_vocab: int | None = None, n: int = N, **params: object) -> torch.Tensor:
    """n draws from one row of logits, seeds 0..n-1."""
    sampler = Sampler([SamplingParams(seed=i, **params) for i in range(n)])  # type: ignore[arg-type]
    return sampler(logits.expand(n, -1), torch.zeros(n, dtype=torch.int64), n_vocab or len(logits))[0]


def shares(ids: torch.Tensor, size: int) -> torch.Tensor:
    return torch.bincount(ids, minlength=size) / len(ids)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_distribution_at_the_temperature(temperature: float) -> None:
    """Bug: an index off by one in the inverse CDF, a temperature that multiplies, or one that is ignored."""
    expected = (LOGITS / temperature).softmax(-1)
    found = shares(draw(LOGITS, temperature=temperature), len(LOGITS))
    sigma = (expected * (1 - expected) / N).sqrt()
    assert ((found - expected).abs() < 5 * sigma + 1e-6).all()


def test_successive_steps_of_one_seed_follow_the_distribution() -> None:
    """Bug: the step not reaching the hash (every token of a row drawn at one quantile), or correlated with it."""
    steps = torch.arange(N)
    sampler = Sampler([SamplingParams(seed=7)] * N)
    ids, _ = sampler(LOGITS.expand(N, -1), steps, len(LOGITS))
    expected = LOGITS.softmax(-1)
    assert ((shares(ids, len(LOGITS)) - expected).abs() < 5 * (expected / N).sqrt()).all()
    u = uniform(sampler.keys, steps)
    assert abs(float(torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1])) < 0.03


def test_the_hash_is_splitmix64() -> None:
    """Bug: a signed shift or a product that saturates; the numbers would still look random, and be biased."""
    golden = 0x9E3779B97F4A7C15
    keys, steps = [0, 1, 2**63 - 1, _splitmix(5)], [0, 3, 1000, 2**31]
    expected = [(_splitmix(k + s * golden) >> 12) * 2.0**-52 for k, s in zip(keys, steps, strict=True)]
    found = uniform(torch.tensor([_signed(k) for k in keys]), torch.tensor(steps))
    assert found.tolist() == expected
    assert _splitmix(0) == 0xE220A8397B1DCDAF  # the published first output for seed 0


def test_neighbouring_seeds_share_no_numbers() -> None:
    """Bug: hashing seed + step, so that seed 8 repeats seed 7's numbers one step late."""
    keys = Sampler([SamplingParams(seed=s) for s in range(50)]).keys
    numbers = {float(u) for step in range(50) for u in uniform(keys, torch.full((50,), step))}
    assert len(numbers) == 2500


def test_the_largest_uniform_number_stays_inside_every_total() -> None:
    """Bug: u * total rounding up to total, which selects past the last token that was kept."""
    totals = torch.rand(10_000, dtype=torch.float64) * 1000 + 1
    largest = (2**52 - 1) * 2.0**-52
    assert (totals * largest < totals).all()


def test_row_seeds_do_not_overlap() -> None:
    """Bug: seed + row: runs with seeds 0 and 1 would share all but one completion and look reproducible."""
    assert len({row_seed(seed, row) for seed in range(30) for row in range(30)}) == 900
    assert row_seed(11, 0) == 11


def test_top_k_and_top_p_cut_where_they_say() -> None:
    """Bug: a nucleus one token short or long, or top-p measured on the mass before top-k."""
    order = LOGITS.argsort(descending=True)
    assert set(draw(LOGITS, top_k=3).tolist()) == set(order[:3].tolist())
    mass = LOGITS.softmax(-1)[order].cumsum(0)
    p = float(mass[2]) - 1e-4  # two tokens are not enough, three are
    assert set(draw(LOGITS, top_p=p).tolist()) == set(order[:3].tolist())
    assert set(draw(LOGITS, top_p=float(mass[2]) + 1e-4).tolist()) == set(order[:4].tolist())
    of_three = LOGITS[order[:3]].softmax(-1)  # of what top-k left, the first two hold this share:
    p = float(of_three[:2].sum())
    assert set(draw(LOGITS, top_k=3, top_p=p - 1e-4).tolist()) == set(order[:2].tolist())
    assert set(draw(LOGITS, top_p=1e-9).tolist()) == {int(order[0])}


def test_a_token_that_was_cut_is_not_drawn_even_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the search takes the first place where the running sum reaches u: at u = 0 a token of weight 0."""
    monkeypatch.setattr(
        "groundup.infer.sample.uniform", lambda keys, steps: torch.zeros(len(keys), dtype=torch.float64)
    )
    assert set(draw(LOGITS.flip(0), n=5, top_k=2).tolist()) == {1}  # ids 7 and 1 are kept


def test_what_is_left_keeps_its_proportions() -> None:
    """Bug: probabilities not renormalised after the cut (the last token kept would take all that was cut)."""
    kept = LOGITS.topk(3)
    expected = torch.zeros(len(LOGITS)).scatter(0, kept.indices, kept.values.softmax(-1))
    assert ((shares(draw(LOGITS, top_k=3), len(LOGITS)) - expected).abs() < 5 * (0.25 / N) ** 0.5).all()


def test_threshold_does_not_depend_on_the_other_rows() -> None:
    """Bug: sorting only as deep as the batch's largest top_k, with rows that asked for all of it cut there."""
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    k, p = torch.tensor([[0], [1], [7], [50], [99], [3]]), torch.tensor([[0.9], [1.0], [0.5], [0.99], [1.0], [1.0]])
    together = threshold(logits, k, p.double())
    alone = torch.cat([threshold(logits[i : i + 1], k[i : i + 1], p[i : i + 1].double()) for i in range(6)])
    assert torch.equal(together, alone)


def test_temperature_zero_is_greedy_alone_and_in_company() -> None:
    """Bug: temperature 0 taken for "not given" (so 1), or a division by it."""
    assert set(draw(LOGITS, n=500, temperature=0).tolist()) == {0}
    params = [SamplingParams(temperature=0 if i % 2 else 1.0, seed=i) for i in range(2000)]
    ids, logprobs = Sampler(params)(LOGITS.expand(2000, -1), torch.zeros(2000, dtype=torch.int64), len(LOGITS))
    assert set(ids[1::2].tolist()) == {0} and len(set(ids[::2].tolist())) > 4
    assert torch.allclose(logprobs[1], LOGITS.log_softmax(-1)[0])


def test_a_row_draws_the_same_in_any_batch() -> None:
    """Bug: random numbers taken from a stream in the order of the rows; batched would differ from single."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 30, generator=generator).repeat_interleave(2, dim=1)  # equal logits: ties everywhere
    params = [
        SamplingParams(temperature=[0, 0.7, 1.0, 1.5][i % 4], top_k=[0, 4, 0][i % 3], top_p=[1, 0.8][i % 2], seed=i)
        for i in range(40)
    ]
    steps = torch.arange(40) % 7
    ids, logprobs = Sampler(params)(logits, steps, 55)
    for i in range(40):
        one, logprob = Sampler(params[i : i + 1])(logits[i : i + 1], steps[i : i + 1], 55)
        assert one[0] == ids[i] and logprob[0] == logprobs[i]


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    """Bug: a vocabulary padded to a round size yields ids that no tokenizer can decode."""
    logits = torch.cat([LOGITS, torch.tensor([30.0, 200.0])])
    assert int(draw(logits, n_vocab=8).max()) <= 7
    assert set(draw(logits, n_vocab=8, n=50, temperature=0).tolist()) == {0}
    _, logprobs = Sampler([SamplingParams()])(logits[None], torch.zeros(1, dtype=torch.int64), 8)
    assert float(logprobs) < -190  # of the whole distribution, as the trainer computes it


def test_logprobs_are_those_before_the_cut() -> None:
    """Bug: log-probs of the filtered distribution; GRPO's ratio would then not be 1 at the first step."""
    params = [SamplingParams(temperature=0.8, top_k=2, top_p=0.7, seed=i) for i in range(100)]
    ids, logprobs = Sampler(params)(LOGITS.expand(100, -1), torch.zeros(100, dtype=torch.int64), len(LOGITS))
    assert torch.allclose(logprobs, (LOGITS / 0.8).log_softmax(-1)[ids], atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    """Bug: a diverged model "samples" the last id of the vocabulary for ever, and nobody is told."""
    with pytest.raises(UserError, match="not finite"):
        Sampler([SamplingParams()])(torch.tensor([[0.0, bad, 1.0]]), torch.zeros(1, dtype=torch.int64), 3)


def test_bad_parameters_are_told_all_at_once() -> None:
    """Bug: top_p = 0 or temperature = -1 accepted, and meaning something odd."""
    with pytest.raises(UserError) as error:
        SamplingParams(max_new_tokens=0, temperature=-1, top_k=-2, top_p=0, stop=("",), stop_ids=(-1,))
    for field in ("max_new_tokens", "temperature", "top_k", "top_p", "stop:", "stop_ids"):
        assert field in str(error.value)
    with pytest.raises(UserError, match="got the string 'END'"):
        SamplingParams(stop="END")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="temperature"):
        SamplingParams(temperature=float("nan"))
    assert replace(SamplingParams(), stop=["x"]).stop == ("x",)  # type: ignore[arg-type]
