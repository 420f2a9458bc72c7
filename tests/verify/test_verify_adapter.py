"""A model of one's own: the page's example runs as it stands there, and what is broken in it is caught."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from command import groundup
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.verify import Adapter, assert_verified, healthy, verify
from groundup.verify.check import REGISTRY, Check
from groundup.verify.opening import as_target
from groundup.verify.run import run_checks

PAGE = Path(__file__).parents[2] / "docs" / "verify-your-model.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
PRINTED = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.S)
FACE = [c.id for c in REGISTRY.values() if "model" in c.ways()]
Make = Callable[..., ModuleType]


@pytest.fixture
def mygpt() -> Make:
    """The page's model, with texts in its source replaced."""

    def make(*replaced: tuple[str, str]) -> ModuleType:
        source = CODE[0]
        for old, new in replaced:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        module = ModuleType("mygpt")
        exec(compile(source, "mygpt.py", "exec"), vars(module))
        return module

    return make


def test_the_pages_model_passes(mygpt: Make) -> None:
    """Everything but what looks at a tokenizer, or needs a second definition, applies, and passes."""
    found = assert_verified(mygpt().target())
    apart = {"ids-in-range", "forward-is-its-definition"}
    apart |= {"accumulation-equals-full-batch", "recompute-changes-no-gradient"}
    assert {c["id"] for c in found["checks"]} == set(FACE) - apart


BROKEN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no mask": (".tril() & ", " & ", ("causality", "prefix-reads-alike")),
    "softmax over queries": (".softmax(-1)", ".softmax(-2)", ("causality",)),
    "the cache's places begin anew": (
        "places[:, -length:]",
        "places[:, :length]",
        ("cached-decode-equals-forward",),
    ),
    "new keys in front": (
        "torch.cat([past[0], k], dim=2)",
        "torch.cat([k, past[0]], dim=2)",
        ("causality-with-cache",),
    ),
    "padding shifts the places": (
        "(visible & real[:, None, :]).sum(-1).clamp(min=1) - 1",
        "torch.arange(seen).expand(len(tokens), -1)",
        ("padding-changes-nothing", "packed-equals-alone"),
    ),
    "padding is read": ("real[:, None, :] | itself", "real[:, :, None] | itself", ("padding-changes-nothing",)),
    "earlier documents are read": (
        "documents[:, :, None] == documents[:, None, :]",
        "documents[:, :, None] >= documents[:, None, :]",
        ("documents-isolated",),
    ),
    "masked targets are scored": (", targets),", ", targets.clamp(min=0)),", ("loss-is-its-definition",)),
    "nothing scored is 0.0": (
        "F.cross_entropy(model(tokens).transpose(1, 2), targets)",
        "F.cross_entropy(model(tokens).transpose(1, 2), targets).nan_to_num()",
        ("all-masked-is-refused",),
    ),
    "shifted twice": (
        "model(tokens).transpose(1, 2), targets",
        "model(tokens)[:, :-1].transpose(1, 2), targets[:, 1:]",
        ("target-is-next-token",),
    ),
    "untied": (
        "self.head.weight = self.embed.weight",
        "self.head.weight = nn.Parameter(self.embed.weight.detach().clone())",
        ("tied-is-one-storage",),
    ),
    "first weights too large": ("std=0.02", "std=1.0", ("init-loss",)),
    "queries detached": ("q @ k", "q.detach() @ k", ("every-parameter-gets-gradient", "gradient-is-the-slope")),
    "dropout in evaluation": (
        "x = x + self.drop(self.out(",
        "x = x + F.dropout(self.out(",
        ("eval-is-deterministic",),
    ),
    "attention left out": (
        "x = x + self.drop(self.out(",
        "x = x + 0 * self.drop(self.out(",
        ("past-is-used", "overfit-one-batch"),
    ),
    "the mask ends at 32": (
        "torch.ones(seen, seen, dtype=torch.bool).tril()",
        "(torch.ones(seen, seen, dtype=torch.bool).tril() | (torch.arange(seen) >= 32))",
        ("causality",),
    ),
    "places end at 30": (
        "self.places(places[:, -length:])",
        "self.places(places[:, -length:].clamp(max=30))",
        ("every-parameter-gets-gradient",),
    ),
    "id 0 is not there": (
        "x = self.embed(tokens) +",
        "x = self.embed(tokens) * (tokens != 0)[..., None] +",
        ("special-ids-are-read",),
    ),
    "the end of text is padding": (
        "real = torch.ones_like(tokens, dtype=torch.bool) if real is None",
        "real = tokens != 96 if real is None",
        ("special-ids-are-read",),
    ),
    "the last id is not scored": (
        ", targets),",
        ", targets.where(targets != 96, -100)),",
        ("loss-is-its-definition",),
    ),
    "no mask in training": (
        "scores.masked_fill(~visible[:, None], -torch.inf)",
        "(scores if self.training else scores.masked_fill(~visible[:, None], -torch.inf))",
        ("training-mode-computes-the-same",),
    ),
    "values detached in training": (
        "(weights @ v)",
        "(weights @ (v.detach() if self.training else v))",
        ("every-parameter-gets-gradient", "gradient-is-the-slope"),
    ),
    "a softmax in bf16": (
        ", -torch.inf).softmax(-1)",
        ", -torch.inf).bfloat16().softmax(-1).float()",
        ("sums-stay-in-fp32",),
    ),
    "a mask of -1e4": (", -torch.inf).softmax", ", -1e4).softmax", ("mask-holds-against-any-score",)),
    "one matrix too large": (
        "self.head.weight = self.embed.weight",
        "self.head.weight = self.embed.weight; nn.init.normal_(self.blocks[1].down.weight, std=1.0)",
        ("first-matrices-are-of-a-size",),
    ),
    "a layer frozen by its own code": (
        "self.head.weight = self.embed.weight",
        "self.head.weight = self.embed.weight; self.blocks[1].qkv.requires_grad_(False)",
        ("every-parameter-gets-gradient",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_in_it_is_caught(name: str, mygpt: Make) -> None:
    """Each by the check it should be, measuring, not breaking off."""
    old, new, caught = BROKEN[name]
    adapter = mygpt((old, new)).target()
    results = {r.id: r for r in run_checks(adapter, only=caught)}
    for id in caught:
        assert results[id].failed and results[id].note.find("Error") < 0, (id, results[id])


def rows(text: str) -> list[tuple[str, str]]:
    """(mark, check id) of each line of a printed table."""
    return re.findall(r"^(ok|skip|FAIL) +([a-z0-9-]+)", text, re.M)


def test_the_page_prints_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mygpt: Make) -> None:
    """`groundup verify mygpt:target`, in the folder where mygpt.py lies; and with the mask taken out of it."""
    (tmp_path / "mygpt.py").write_text(CODE[0])
    (tmp_path / "mygpt_broken.py").write_text(CODE[0].replace(".tril() & ", " & "))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    sound = groundup("verify", "mygpt:target")
    assert sound.code == 0, sound.err
    assert sorted(rows(sound.out)) == sorted(rows(PRINTED[0])) and "28 passed, 0 failed, 4 do not apply" in PRINTED[0]
    broken = groundup("verify", "mygpt_broken:target", "--only", "causality")
    assert broken.code == 1 and rows(broken.out) == rows(PRINTED[1]) == [("FAIL", "causality")]


@pytest.mark.full
def test_the_pages_pytest_use(tmp_path: Path) -> None:
    """assert_verified in a test file, and one item a check without any; a broken model fails both."""
    (tmp_path / "mygpt.py").write_text(CODE[0])
    (tmp_path / "broken.py").write_text(CODE[0].replace(".tril() & ", " & "))
    (tmp_path / "test_mine.py").write_text(CODE[1])
    (tmp_path / "test_broken.py").write_text(CODE[1].replace("mygpt", "broken"))
    known = [entry.value for entry in importlib.metadata.entry_points(group="pytest11")]
    plugin = [] if "groundup.verify.plugin" in known else ["-p", "groundup.verify.plugin"]

    def run(*given: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", *plugin, *given]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    mine = run("test_mine.py", "--groundup-verify", "mygpt:target")
    assert mine.returncode == 0 and "29 passed, 4 skipped" in mine.stdout, mine.stdout + mine.stderr
    broken = run("test_broken.py", "--groundup-verify", "broken:target", "-k", "my_model")
    assert broken.returncode == 1 and "causality: A position sees later tokens" in broken.stdout, broken.stdout


def test_the_page_says_what_opens_what(mygpt: Make) -> None:
    """Each row of the table: with that function alone its checks apply; without it they are skipped."""
    whole = mygpt().target()
    whole.tokenizer, whole.recompute = Words(), lambda on: None
    whole.loss_over = lambda tokens, targets, n: (
        nn.functional.cross_entropy(whole.logits(tokens).transpose(1, 2), targets, reduction="sum") / n
    )
    for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.M):
        ids = [id for id in re.findall(r"`([a-z-]+)`", row[1]) if id in REGISTRY]
        if row[0] in ("pieces", "redraw"):
            continue
        bare = Adapter(whole.module, **{"logits": whole.logits, row[0]: getattr(whole, row[0])})
        assert ids and not [r.id for r in run_checks(bare, only=ids) if r.skipped], row
        if row[0] != "logits":
            without = run_checks(Adapter(whole.module, logits=whole.logits), only=ids)
            assert all(r.skipped and f"`{row[0]}`" in r.skipped for r in without), row
    named = set(re.findall(r"`([a-z0-9-]+)`", PAGE.read_text().split("| given")[1].split("Shapes and")[0]))
    assert set(FACE) - {"forward-is-its-definition"} <= named


class Words:
    """A tokenizer of the simplest kind."""

    vocab_size = 97

    def encode(self, text: str) -> list[int]:
        return [min(b, 96) for b in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


class OneHot(nn.Module):
    """Says the next token is the same again."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, width), nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def test_an_adapter_that_cannot_work_is_refused() -> None:
    """All that is wrong is named at once."""
    with pytest.raises(UserError, match=r"not a torch\.nn\.Module; context is 8"):
        Adapter("gpt2", logits=lambda tokens: tokens, context=8)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no parameters"):
        Adapter(nn.Identity(), logits=lambda tokens: tokens)
    model = OneHot()
    with pytest.raises(UserError, match=r"gave \(2, 11\), not \(2, 5, V\)"):
        Adapter(model, logits=lambda tokens: model(tokens)[:, -1]).ask(torch.zeros(2, 5, dtype=torch.int64))


def test_the_weights_are_put_back(mygpt: Make) -> None:
    """The model that is handed over is the one that goes on afterwards: weights, modes, gradients."""
    adapter = mygpt().target()
    adapter.module.train()
    adapter.module.blocks[1].eval()
    before = {name: tensor.clone() for name, tensor in adapter.module.state_dict().items()}
    verify(adapter)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.module.state_dict().items())
    assert adapter.module.training and not adapter.module.blocks[1].training
    assert all(p.grad is None for p in adapter.module.parameters())
    assert adapter.module.head.weight is adapter.module.embed.weight


def test_a_plain_module_is_looked_at_as_it_is(mygpt: Make) -> None:
    """No adapter: logits alone, and the reasons why the rest does not apply."""
    found = verify(mygpt().GPT())
    skipped = {one["id"]: one["reason"] for one in found["skipped"]}
    assert not found["failed"] and "`decoder`" in skipped["cached-decode-equals-forward"]
    assert as_target(mygpt().GPT()).face("model") is not None


def test_a_loss_that_takes_views_is_no_bug(mygpt: Make) -> None:
    """Bug: nanoGPT's `targets.view(-1)` breaks off on a slice of the checks' rows, and is called a dead parameter."""
    model = mygpt().GPT()

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(tokens)
        return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    found = verify(Adapter(model, logits=model, loss=loss, context=48))
    assert [c["id"] for c in found["checks"] if not c["passed"]] == []


def test_frozen_parameters_are_no_bug(mygpt: Make) -> None:
    """What is frozen on purpose has no gradient; everything frozen leaves nothing to look at."""
    adapter = mygpt().target()
    ids = ["every-parameter-gets-gradient", "gradient-is-the-slope"]
    adapter.module.blocks[0].requires_grad_(False)
    assert all(r.passed for r in run_checks(adapter, only=ids))
    adapter.module.requires_grad_(False)
    assert all(r.skipped for r in run_checks(adapter, only=ids))


def test_layers_of_zeros_that_were_meant_are_no_bug(mygpt: Make) -> None:
    """A scheme that begins with zeros does so in all layers; one layer alone was lost."""
    adapter = mygpt().target()
    for block in adapter.module.blocks:
        nn.init.zeros_(block.down.weight)
    assert run_checks(adapter, only=["weights-are-finite"])[0].passed
    nn.init.normal_(adapter.module.blocks[2].down.weight)
    assert run_checks(adapter, only=["weights-are-finite"])[0].failed


def test_what_is_frozen_on_purpose_is_named(mygpt: Make) -> None:
    """A table that a fresh model draws and keeps is a bug unless it is meant."""
    line = "self.head.weight = self.embed.weight"
    adapter = mygpt((line, f"{line}; self.places.requires_grad_(False)")).target()
    assert run_checks(adapter, only=["every-parameter-gets-gradient"])[0].failed
    adapter.frozen = ("places",)
    assert run_checks(adapter, only=["every-parameter-gets-gradient"])[0].passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_no_bug(dtype: torch.dtype, mygpt: Make) -> None:
    """A module in half precision is looked at in fp32, and is what it was afterwards, bit for bit."""
    page = mygpt()

    def drawn(seed: int = 0) -> Adapter:
        adapter = page.drawn(seed)
        adapter.module.to(dtype)
        adapter.fresh = drawn
        adapter.loss = lambda tokens, targets: nn.functional.cross_entropy(
            adapter.module(tokens).float().transpose(1, 2), targets
        )
        return adapter

    adapter = drawn()
    before = {name: (p, p.detach().clone()) for name, p in adapter.module.named_parameters()}
    assert not [(r.id, r.measured, r.bound, r.note) for r in run_checks(adapter) if r.failed]
    for name, p in adapter.module.named_parameters():
        assert p is before[name][0] and p.dtype == dtype and torch.equal(p, before[name][1]), name


def test_a_module_that_casts_within_is_looked_at_in_its_own_precision(mygpt: Make) -> None:
    """It does not run in fp32; what rounding to 8 bits hides is skipped with that reason, and nothing fails."""
    line = "x = self.embed(tokens) + self.places(places[:, -length:])"
    page = mygpt((line, line.replace("= ", "= (", 1) + ").bfloat16()"))

    def drawn(seed: int = 0) -> Adapter:
        adapter = page.drawn(seed)
        adapter.module.bfloat16()
        adapter.fresh = drawn
        return adapter

    results = {r.id: r for r in run_checks(drawn()) if r.id not in ("overfit-one-batch", "sums-stay-in-fp32")}
    assert not [(r.id, r.note) for r in results.values() if r.failed]
    assert "does not run in fp32" in (results["past-is-used"].skipped or "") and results["causality"].passed


def test_a_loss_of_8_bits_is_seen_in_a_module_in_bf16(mygpt: Make) -> None:
    """F.cross_entropy on bf16 logits; in a model in fp32 autocast would run it in fp32, and it is no bug."""
    adapter = mygpt().target()
    assert run_checks(adapter, only=["sums-stay-in-fp32"])[0].passed
    adapter.module.bfloat16()
    found = run_checks(adapter, only=["sums-stay-in-fp32"])[0]
    assert found.failed and "the loss has 8 bits" in found.note


@pytest.mark.parametrize("vocabulary", [2, 3, 7, 20, 21])
def test_small_vocabularies_are_no_bug(vocabulary: int, mygpt: Make) -> None:
    """Rows to learn by heart are made of as many ids as there are."""
    adapter = mygpt(("vocab=97", f"vocab={vocabulary}")).target()
    assert not [(r.id, r.note) for r in run_checks(adapter) if r.failed]


def test_a_small_vocabulary_still_shows_what_is_not_read(mygpt: Make) -> None:
    """With two ids the batch cannot be learned without the past either."""
    old, new, _ = BROKEN["attention left out"]
    adapter = mygpt((old, new), ("vocab=97", "vocab=2")).target()
    assert run_checks(adapter, only=["overfit-one-batch"])[0].failed


@pytest.mark.parametrize("seed", range(5))
def test_other_seeds_pass(seed: int, mygpt: Make) -> None:
    """Other weights, other tokens."""
    assert not [r for r in run_checks(mygpt().target(), seed=seed + 1) if r.failed]


SOME = ["base", "experts (mixtral)", "sandwich, caps, windows (gemma 2)", "t5", "latent attention", "dynamic scaling"]


def assert_ours_passes(name: str, seed: int = 0) -> None:
    adapter = healthy.subject(healthy.HEALTHY[name]).adapter
    if name == "dynamic scaling":  # exact with a cache as long as nothing is stretched
        adapter.context = 32
    failed = [(r.id, r.measured, r.bound, r.note) for r in run_checks(adapter, only=FACE, seed=seed) if r.failed]
    assert not failed, (name, failed)


@pytest.mark.parametrize("name", SOME)
def test_our_own_models_pass_as_outsiders(name: str) -> None:
    """groundup's model through the adapter: what is asked of others is asked of it."""
    assert_ours_passes(name)


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", healthy.HEALTHY)
def test_all_our_models_pass_as_outsiders(name: str, seed: int) -> None:
    """Every healthy configuration, at further seeds."""
    assert_ours_passes(name, seed)


def test_checks_of_a_model_say_what_they_are() -> None:
    """A check on this face must have a way of its own, documented."""
    for id in FACE:
        one: Check = REGISTRY[id]
        assert one.ways()["model"].__doc__, id
