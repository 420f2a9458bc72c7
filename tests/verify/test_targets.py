"""Whatever somebody has becomes a target, or is refused with what to give; reports reach pytest and CI."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.verify import Adapter, assert_verified, verify
from groundup.verify.junit import junit
from groundup.verify.opening import as_target, from_factory, open_or_recipe, open_target

QUICK = ["causality", "rows-do-not-mix"]


class Bag(nn.Module):
    """A language model of the least kind: a mean of what has been read so far, each place weighed in its own way."""

    def __init__(self, leaks: bool = False) -> None:
        super().__init__()
        self.embed, self.head, self.leaks = nn.Embedding(50, 16), nn.Linear(16, 50), leaks
        self.place = nn.Embedding(64, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.place.weight[: tokens.shape[1]]
        seen = x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        return self.head(seen + (x.mean(1, keepdim=True) if self.leaks else 0))


@pytest.fixture
def module_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with bag.py in it, in which one stands."""
    source = Path(__file__).read_text().split("class Bag")[1].split("\n\n\n")[0]
    head = "import torch\nfrom torch import Tensor, nn\n\n\nclass Bag"
    sound = "\n\n\ndef sound():\n    return Bag()\n\n\ndef leaky():\n    return Bag(True), None\n"
    wrong = "\n\ndef broken():\n    1 / 0\n\n\nnumber = 3\n"
    (tmp_path / "bag.py").write_text(head + source + sound + wrong)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bag", raising=False)
    yield tmp_path
    sys.modules.pop("bag", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_a_plain_module_is_enough() -> None:
    """People have a module; an adapter that must be filled in first is one that nobody fills in."""
    assert verify(Bag(), only=QUICK)["failed"] == 0
    assert [c["id"] for c in verify(Bag(leaks=True), only=QUICK)["checks"] if not c["passed"]] == ["causality"]


def test_assert_verified_tells_bug_numbers_and_remedy() -> None:
    """An AssertionError without them sends people to another page."""
    with pytest.raises(AssertionError, match=r"causality: .*later tokens.*Measured .*bound <= "):
        assert_verified(Bag(leaks=True), only=QUICK)
    found = assert_verified(Bag(leaks=True), only=QUICK, allow=["causality"])
    assert found["failed"] == 1
    with pytest.raises(AssertionError, match="nothing was looked at"):
        assert_verified(Bag(), only=["document-ends"])


def test_the_weights_come_back_as_they_were() -> None:
    """Redrawn weights that stay are a model destroyed; a mode that stays is dropout off in training."""
    module = Bag().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    verify(module, only=QUICK)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training and all(p.grad is None for p in module.parameters())


def test_logits_of_another_shape_are_refused_by_name() -> None:
    """nanoGPT gives the last place's logits alone when no targets are given: nothing could be checked, silently."""
    bag = Bag()
    with pytest.raises(UserError, match="the last place's logits alone"):
        verify(Adapter(bag, logits=lambda tokens: bag(tokens)[:, -1:], vocab_size=50), only=["causality"])


def test_a_wrong_adapter_is_one_message_and_no_bug() -> None:
    """Bug: a model that gives (logits, loss) fails sixteen checks, each with the remedy of a bug it does not have."""
    bag = Bag()
    with pytest.raises(UserError, match=r"gave a tuple.*model\(tokens\)\[0\]"):
        verify(Adapter(bag, logits=lambda tokens: (bag(tokens), None), vocab_size=50))
    with pytest.raises(UserError, match=r"broke off on tokens.*KeyError: 'input_ids'"):
        verify(Adapter(bag, logits=lambda tokens: {}["input_ids"], vocab_size=50))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, r"int; give a groundup\.verify\.Adapter"),
        ((Bag(), None, 1), "tuple; give"),
        (Bag, r"is a class; call it in a function: def target\(\): return Bag\(\.\.\.\)"),
        ("nowhere/at-all", "no recipe|no such|not found|is neither"),
    ],
)
def test_what_is_no_target_is_refused(made: object, message: str) -> None:
    """A traceback out of the middle of the checks tells nobody what to give."""
    with pytest.raises(UserError, match=message):
        open_or_recipe(made) if isinstance(made, str) else as_target(made)


def test_adapters_that_cannot_be_looked_at_say_all_that_is_wrong() -> None:
    with pytest.raises(UserError, match=r"not a torch\.nn\.Module; context is 5"):
        Adapter(module=object(), logits=lambda tokens: tokens, context=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no parameters"):
        Adapter(nn.ReLU(), logits=lambda tokens: tokens)


def test_factories_are_found_where_one_stands(module_here: Path) -> None:
    """`python -m` looks into the current folder, the console script does not: people's own files would not be found."""
    assert isinstance(open_target("bag:sound"), Adapter) and isinstance(from_factory("bag:leaky"), Adapter)
    for given, message in (
        ("bag:gone", 'bag has no "gone"'),
        ("bag:broken", "ZeroDivisionError"),
        ("bag:number", "is a int; give"),
        ("nowhere.at_all:f", "cannot be imported"),
    ):
        with pytest.raises(UserError, match=message):
            from_factory(given)
    (module_here / "wrong.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match="no_such_package"):
        from_factory("wrong:f")


def test_pytest_makes_an_item_of_each_check(module_here: Path) -> None:
    """A plugin that collects nothing passes; one that swallows a failure too."""

    def run(target: str, *more: str) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *more]
        return subprocess.run([*given, "--groundup-verify", target], capture_output=True, text=True, timeout=300)

    sound, leaky = run("bag:sound"), run("bag:leaky")
    assert sound.returncode == 0 and "bag:sound::causality PASSED" in sound.stdout, sound.stdout
    assert "bag:sound::documents-isolated SKIPPED" in sound.stdout
    assert leaky.returncode == 1 and "bag:leaky::causality FAILED" in leaky.stdout
    assert "A position sees later tokens" in leaky.stdout and "Traceback" not in leaky.stdout
    wrong = run("bag:gone")
    assert wrong.returncode == 4 and 'bag has no "gone"' in wrong.stderr
    assert run("bag:sound", "--collect-only").returncode == 0


def test_junit_counts_and_escapes() -> None:
    """CI systems refuse a file with a NUL in it, and then show nothing at all."""
    check = {"family": "identity", "direction": "<=", "measured": 2.0, "bound": 1.0, "seconds": 0.25, "remedy": "r."}
    found = {
        "checks": [
            {"id": "a", "stage": "model", "passed": True, "bug": "b.", "note": "", **check},
            {"id": "b", "stage": "model", "passed": False, "bug": "b <&>.", "note": "nul \x00 \ud800 here", **check},
        ],
        "failed": 1,
        "skipped": [{"id": "c", "stage": "train", "reason": "no"}],
    }
    root = ET.fromstring(junit(found))
    suites = {suite.get("name"): suite for suite in root}
    assert {k: suites["model"].get(k) for k in ("tests", "failures", "skipped", "time")} == {
        "tests": "2", "failures": "1", "skipped": "0", "time": "0.500",
    }  # fmt: skip
    failure = suites["model"].find("./testcase[@name='b']/failure")
    assert failure is not None and "b <&>." in str(failure.text) and "Measured 2.0" in str(failure.text)
    assert suites["train"].find("./testcase[@name='c']/skipped") is not None
