"""What transformers computes and what we compute from the same files are one function, in every family, both ways.

`python tests/model/test_interchange_parity.py` prints the table that docs/interchange.md shows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_shapes import CONTEXT, SHAPES, VOCAB, built, opened, randomised
from safetensors.torch import load_file

from groundup.infer.cache import KVCache
from groundup.infer.engine import Engine, SamplingParams
from groundup.model.interchange.configs import computed, config_from_hf, hf_config, hf_obstacles
from groundup.model.interchange.hf import export_hf
from groundup.model.interchange.hf_import import import_hf
from groundup.model.storage import load_model
from groundup.model.transformer import Transformer
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer

BOUND = 1e-4  # largest difference of two logits, fp32
COLUMNS = ("import", "padded", "packed", "cached", "greedy", "export", "round trip")


def make_tokenizer(folder: Path) -> Path:
    texts = [Path(os.__file__).read_text(encoding="utf-8")]
    train_tokenizer(TokenizerSection(kind="bpe", vocab_size=VOCAB), texts).save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ids_of(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(ours: Transformer, tokens: torch.Tensor, **how: Any) -> torch.Tensor:
    return ours.logits(ours(tokens, **how))


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


# The columns of the table: largest difference of logits, or how many tokens or tensors are equal.


def whole(theirs: Any, ours: Transformer) -> float:
    """Rows as long as the context."""
    tokens = ids_of(3, CONTEXT, 1)
    return largest(theirs(tokens).logits, logits(ours, tokens))


def padded(theirs: Any, ours: Transformer) -> float:
    """Theirs: a batch padded on the left, and one on the right, with masks. Ours: right padding, no mask."""
    lengths, tokens = [CONTEXT, 23, 3], ids_of(3, CONTEXT, 2)
    ragged, found = logits(ours, tokens), 0.0
    for side in ("left", "right"):
        batch, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for row, n in enumerate(lengths):
            place = slice(CONTEXT - n, CONTEXT) if side == "left" else slice(0, n)
            batch[row, place], mask[row, place] = tokens[row, :n], 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = theirs(batch, attention_mask=mask, position_ids=positions).logits
        for row, n in enumerate(lengths):
            found = max(found, largest(out[row][mask[row] == 1], ragged[row, :n]))
    return found


def packed(theirs: Any, ours: Transformer) -> float:
    """Ours: several documents in a row. Theirs: each document alone."""
    lengths, tokens = [9, 1, 17, 13], ids_of(1, CONTEXT, 3)
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None].int()
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    row = logits(ours, tokens, documents=documents, positions=positions)[0]
    alone = [theirs(part[None]).logits[0] for part in tokens[0].split(lengths)]
    return largest(torch.cat(alone), row)


def cached(theirs: Any, ours: Transformer) -> float:
    """Ours: a ragged prompt, then a few tokens at once, then one by one, with a cache. Theirs: whole rows, none."""
    prompts, tokens = torch.tensor([11, 4]), ids_of(2, CONTEXT, 4)
    expected, found = theirs(tokens).logits, 0.0
    cache = KVCache(ours.config, 2, CONTEXT)
    batch = tokens[:, : int(prompts.max())]
    steps = [(batch, torch.arange(batch.shape[1]).expand(2, -1))]
    starts = prompts.clone()
    for n in (5, *[1] * (CONTEXT - 16)):
        positions = starts[:, None] + torch.arange(n)
        steps.append((tokens.gather(1, positions), positions))
        starts += n
    for step, (part, positions) in enumerate(steps):
        out = logits(ours, part, positions=positions, cache=cache)
        for row in range(2):
            n = int(prompts[row]) if step == 0 else part.shape[1]
            found = max(found, largest(out[row, :n], expected[row, positions[row, :n]]))
    return found


def greedy(theirs: Any, ours: Transformer, tokenizer: Tokenizer) -> tuple[int, int]:
    """(tokens that are equal, tokens) of texts continued by the most likely token to the end of the context."""
    prompts = [ids_of(1, n, 5 + n)[0].tolist() for n in (3, 9, 14)]
    equal = total = 0
    for prompt in prompts:
        more = CONTEXT - len(prompt)
        params = SamplingParams(max_new_tokens=more, temperature=0)
        said = Engine(ours, tokenizer).generate([prompt], params)[0].ids
        start = torch.tensor([prompt])
        out = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=more, do_sample=False)
        expected = out[0, len(prompt) :].tolist()
        assert len(said) == len(expected) == more
        equal += sum(a == b for a, b in zip(said, expected, strict=True))
        total += more
    return equal, total


def exported(architecture: str, config: Any, tokenizer: Path, folder: Path) -> tuple[float, bool]:
    """(difference of a model of ours and of what transformers reads from its export, whether it comes back equal)."""
    ours = randomised(Transformer(config), seed=7)
    export_hf(ours, tokenizer, folder / "export", architecture=architecture)
    theirs = opened(folder / "export")
    tokens = ids_of(2, CONTEXT, 6)
    import_hf(folder / "export", folder / "back")
    back = load_model(folder / "back")
    before, after = ours.state_dict(), back.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return largest(theirs(tokens).logits, logits(ours, tokens)), same and computed(back.config) == computed(config)


def files_come_back(shape: str, tokenizer: Path, folder: Path) -> bool:
    """Whether export(import(files)) holds the very tensors of files that transformers saved in bf16."""
    built(shape, folder / "bf16", seed=3, dtype=torch.bfloat16)
    info = import_hf(folder / "bf16", folder / "bf16-ours")
    assert info["dtype"] == "bfloat16"
    model = load_model(folder / "bf16-ours", torch.bfloat16)
    export_hf(model, tokenizer, folder / "bf16-back", architecture=info["architecture"])
    first = load_file(folder / "bf16" / "model.safetensors")
    second = load_file(folder / "bf16-back" / "model.safetensors")
    return first.keys() == second.keys() and all(
        second[name].dtype == torch.bfloat16 and torch.equal(first[name], second[name]) for name in first
    )


@torch.no_grad()
def measure(shape: str, tokenizer_folder: Path, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    theirs = built(shape, folder / "hf")
    info = import_hf(folder / "hf", folder / "ours")
    ours = load_model(folder / "ours").eval()
    assert info["parameters"] == theirs.num_parameters()
    assert hf_obstacles(ours.config, info["architecture"]) == []
    export, same = exported(info["architecture"], ours.config, tokenizer_folder, folder)
    return {
        "architecture": info["architecture"],
        "import": whole(theirs, ours),
        "padded": padded(theirs, ours),
        "packed": packed(theirs, ours),
        "cached": cached(theirs, ours),
        "greedy": greedy(theirs, ours, Tokenizer.load(tokenizer_folder)),
        "export": export,
        "round trip": same and files_come_back(shape, tokenizer_folder, folder),
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_parity(shape: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    """Bug: any difference in what is computed: a seam, a norm's name, a window's edge, a rope's rate, a cap."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    row = measure(shape, tokenizer_folder, tmp_path)
    assert {
        column: row[column] for column in ("import", "padded", "packed", "cached", "export") if row[column] > BOUND
    } == {}
    assert row["greedy"][0] == row["greedy"][1]
    assert row["round trip"]


@pytest.mark.parametrize("shape", SHAPES)
def test_config_comes_back(shape: str, tmp_path: Path) -> None:
    """Bug: a key that is read but not written, or written in a form that is not read."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    import json

    built(shape, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    ours = config_from_hf(content)
    again = config_from_hf(hf_config(ours, content["architectures"][0]))
    assert computed(again) == computed(ours)


@torch.no_grad()
def test_dynamic_scaling_past_the_original_context(tmp_path: Path) -> None:
    """Bug: the base grows with the wrong length, or max_position_embeddings is taken for the longest text."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = built("llama, dynamic", tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "ours")
    ours = load_model(tmp_path / "ours").eval()
    assert ours.config.context == 3 * CONTEXT
    for length in (41, 77, 120):  # growing: theirs keeps the rates of the longest text so far
        tokens = ids_of(2, length, length)
        assert largest(theirs(tokens).logits, logits(ours, tokens)) < BOUND


def table() -> str:
    """Markdown."""
    lines = ["| " + " | ".join(("shape", *COLUMNS)) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(Path(folder) / "tokenizer")
        for n, shape in enumerate(SHAPES):
            row = measure(shape, tokenizer, Path(folder) / str(n))
            row["greedy"] = "{} of {}".format(*row["greedy"])
            row["round trip"] = "bit for bit" if row["round trip"] else "DIFFERS"
            cells = (f"{row[c]:.1e}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS)
            lines.append("| " + " | ".join((shape, *cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print(table())
