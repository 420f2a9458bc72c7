"""What `groundup verify` says to somebody who meets it for the first time: where to go from here, in few lines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import groundup

from groundup.errors import UserError
from groundup.verify.check import REGISTRY, STAGES
from groundup.verify.explain import list_text
from groundup.verify.opening import open_target
from groundup.verify.rows import Rows
from groundup.verify.run import select

SOURCE = """
import torch
from torch import nn


class GPT(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, width), nn.Linear(width, 50)

    def forward(self, tokens):
        return self.head(self.embed(tokens).cumsum(1))


def target():
    return GPT()
"""


def chats(path: Path, *asked: str) -> None:
    rows = [[{"role": "user", "content": a}, {"role": "assistant", "content": f"To {a}: yes."}] for a in asked]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a newcomer has lying about, in the current folder."""
    for name in ("tinygpt.py", "my-gpt.py", "own/tinygpt.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SOURCE)
    for name in ("botchan.txt", "notes.md", "town.gguf", "ckpt.pt", "lone.safetensors"):
        (tmp_path / name).write_bytes(b"name: \xfd: [")
    (tmp_path / "my-llama").mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "merges.txt"):
        (tmp_path / "my-llama" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tinygpt", raising=False)
    yield tmp_path
    sys.modules.pop("tinygpt", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


# ---- files of another kind ----


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tinygpt.py", r"give tinygpt:target \(a function that returns an Adapter, a torch module"),
        ("tinygpt.py:target", r"give tinygpt:target "),
        ("./own/tinygpt.py:GPT", r"give own\.tinygpt:GPT "),
        ("my-gpt.py", r"rename it .*give my_gpt:target"),
        ("tinygpt:GPT", r"tinygpt:GPT is a class; call it in a function: def target\(\): return GPT\(\.\.\.\)"),
        ("botchan.txt", r"plain text is not verified; rows are \(\.json \.jsonl"),
        ("notes.md", r"plain text is not verified"),
        ("town.gguf", r"`groundup export` when it is written \(docs/gguf\.md\), not here"),
        ("my-llama/config.json", r"give the folder my-llama$"),
        ("my-llama/tokenizer.json", r"give the folder my-llama$"),
        ("my-llama/model.safetensors", r"give the folder my-llama$"),
        ("my-llama/merges.txt", r"give the folder my-llama$"),
        ("lone.safetensors", r"give a folder that holds config\.json too"),
        ("ckpt.pt", r"may be a pickle.*give package\.module:target"),
        ("gone.gguf", r"gone\.gguf: there is no such file"),
    ],
)
def test_a_file_of_another_kind_is_told_what_to_give(here: Path, given: str, says: str) -> None:
    """Bug: all of these were read as recipes, and the newcomer was told "not valid YAML"."""
    with pytest.raises(UserError, match=says) as caught:
        open_target(given)
    assert "YAML" not in str(caught.value)


def test_source_elsewhere_and_a_file_of_the_folder_one_stands_in(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: "give the folder ." and "give ..tinygpt:target", which are refused in turn."""
    monkeypatch.chdir(here / "my-llama")
    with pytest.raises(UserError, match=f"give the folder {re.escape(str(here / 'my-llama'))}$"):
        open_target("config.json")
    with pytest.raises(UserError, match=f"go to {re.escape(str(here))} and give tinygpt:target"):
        open_target("../tinygpt.py")


def test_the_command_says_it_too(here: Path) -> None:
    """Bug: the command asks the reader of recipes first."""
    result = groundup("verify", "botchan.txt")
    assert (result.code, result.out) == (2, "") and "plain text is not verified" in result.err


# ---- a folder of rows ----


def test_files_of_a_folder_are_one_target(here: Path) -> None:
    """Bugs: the folder is read as a recipe; one file of it alone is looked at; a place does not say of which file."""
    (here / "rows").mkdir()
    chats(here / "rows" / "a.jsonl", "Who lives here?", "Where does Ada live?")
    chats(here / "rows" / "b.jsonl", "Who lives here?")
    (here / "rows" / "README.md").write_text("rows")
    found = open_target("rows")
    assert isinstance(found, Rows) and not found.beside
    assert [row.where for row in found.rows] == ["a.jsonl line 1", "a.jsonl line 2", "b.jsonl line 1"]
    assert found.files == {(here / "rows" / name).resolve() for name in ("a.jsonl", "b.jsonl")}
    result = groundup("verify", "rows", "--only", "prompts-do-not-repeat")
    assert result.code == 1 and "b.jsonl line 1" in result.out


def test_the_test_files_of_a_folder_are_the_other_side(here: Path) -> None:
    """Bug: a prompt that train and test share is reported as said twice in one set, not as a leak."""
    (here / "rows").mkdir()
    chats(here / "rows" / "train-00000-of-00002.jsonl", "Who lives here?")
    chats(here / "rows" / "train-00001-of-00002.jsonl", "Where does Ada live?")
    chats(here / "rows" / "test-00000-of-00001.jsonl", "Who lives here?")
    found = open_target("rows")
    assert isinstance(found, Rows)
    assert {name: len(side) for name, side in found.sides.items()} == {"rows": 2, "test-00000-of-00001.jsonl": 1}
    result = groundup("verify", "rows", "--only", "train-and-test-share-no-prompt", "--json")
    assert result.code == 1 and result.json()["failed"] == 1


def test_folders_that_are_no_one_target_name_their_files(here: Path) -> None:
    """Bug: rows of the lesser kind are called damaged, or a folder of pictures a recipe."""
    (here / "rows").mkdir()
    with pytest.raises(UserError, match=r"rows holds no run .* no model or tokenizer .* and no rows"):
        open_target("rows")
    chats(here / "rows" / "a.jsonl", "Who lives here?")
    (here / "rows" / "p.jsonl").write_text('{"prompt": "Who?", "chosen": "Ada.", "rejected": "Bo."}\n')
    with pytest.raises(UserError, match=r"several kinds \(a\.jsonl: conversations, p\.jsonl: pairs\): give one file"):
        open_target("rows")
    (here / "rows" / "p.jsonl").rename(here / "rows" / "test.jsonl")
    with pytest.raises(UserError, match=r"several kinds \(test\.jsonl: pairs; others: conversations\)"):
        open_target("rows")
    (here / "rows" / "test.jsonl").unlink()
    (here / "rows" / "info.json").write_text("{}")
    with pytest.raises(UserError, match=r"info\.json: a list .*take it out, or give one file"):
        open_target("rows")


def test_a_preset_goes_before_a_folder_of_its_name(here: Path) -> None:
    """Bug: beside a folder called town, `groundup verify town` is about that folder."""
    (here / "town").mkdir()
    assert open_target("town") is None


# ---- which checks ----


@pytest.mark.parametrize(("name", "says"), [("no-such", "nearest: "), ("gradient", "every-parameter-gets-gradient")])
def test_an_unknown_check_names_a_few(name: str, says: str) -> None:
    """Bug: all 256 ids are printed, and what was asked for has left the screen."""
    with pytest.raises(UserError, match="see groundup verify --list") as caught:
        select([name])
    assert says in str(caught.value)
    assert sum(id in str(caught.value) for id in REGISTRY) <= 4 and len(str(caught.value)) < 250


def test_the_list_fits_a_terminal() -> None:
    """Bug: a table whose last column is 16 letters wide at 80 columns: 3,350 lines. No check may be missing."""
    lines = list_text(list(REGISTRY.values()), 80).splitlines()
    assert len(lines) < 3.5 * len(REGISTRY) and max(map(len, lines)) <= 80
    heads = [line for line in lines if line and line[0] not in " ="]
    assert sorted(line.split()[0] for line in heads) == sorted(REGISTRY)
    assert [line.split()[1].rstrip(":") for line in lines if line.startswith("==")] == list(STAGES)
    assert "causality  locality; looks at: recipe, model" in lines
    shown = groundup("verify", "--list", "--only", "causality")
    assert shown.code == 0 and "A position sees later tokens" in shown.out and "1 checks" not in shown.out


# ---- at the end ----


def test_skipped_for_one_reason_is_one_line(here: Path) -> None:
    """Bug: a line for each check that an adapter would need more for, to somebody who gave a module alone."""
    out = " ".join(groundup("verify", "tinygpt:target", "--stage", "model", "--stage", "train").out.split())
    assert re.search(r"skip \d checks, the adapter has no `fresh`: [a-z-]+, [a-z-]+", out)
    assert out.count("has no `fresh`") == 1 and out.count("has no `decoder`") == 1
    assert "skip accumulation-equals-full-batch: the adapter has no `loss_over`: how a part" in out


def test_the_count_is_said_once(here: Path) -> None:
    """Bug: "1 failed", and then "error: 1 of 1 checks failed". With --json stdout has no such line."""
    result = groundup("verify", "tinygpt:target", "--only", "positions-matter")
    assert result.code == 1 and "0 passed, 1 failed, 0 do not apply" in result.out
    assert "failed" not in result.err
    assert "1 of 1 checks failed" in groundup("verify", "tinygpt:target", "--only", "positions-matter", "--json").err


def test_live_checks_say_where_their_results_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: "every check asked for was skipped (the reasons are above)", with nothing above."""
    from groundup.cli.verifying import _where_live

    result = groundup("verify", "town", "--stage", "live")
    assert result.code == 1 and "above" not in result.err and "RUN/STAGE/live.json" in result.err
    assert f"write {tmp_path}/STAGE/live.json" in _where_live(tmp_path)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "live.json").write_text("{}")
    assert _where_live(tmp_path).endswith(f"their results are in {tmp_path / 'sft' / 'live.json'}")


def test_reasons_stand_where_it_is_said(here: Path) -> None:
    """Bug: the reasons are said to be above, and are not; in JSON they are under a key."""
    asked = ("verify", "tinygpt:target", "--only", "document-ends")
    shown = groundup(*asked)
    assert shown.code == 1 and "skip  document-ends: " in shown.out and "the reasons are above" in shown.err
    told = groundup(*asked, "--json")
    assert told.json()["skipped"][0]["reason"] and 'the reasons are under "skipped"' in told.err
