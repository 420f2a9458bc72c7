"""The model card: metadata that the hub can read, numbers of the records, and nothing left to fill in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_run import MadeUpRun, recipe_tree

from groundup.errors import CheckFailed, UserError
from groundup.recipe.load import dump_recipe, parse_recipe
from groundup.release.card import cell, placeholders, write_card

SECTIONS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
]


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUpRun:
    return MadeUpRun(tmp_path / "made-up").all()


def front(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def change_recipe(made_up: MadeUpRun, **sections: Any) -> None:
    tree = recipe_tree(made_up.stages) | sections
    (made_up.path / "recipe.resolved.yaml").write_text(dump_recipe(parse_recipe(tree, "test")), encoding="utf-8")


def test_metadata_is_yaml_with_the_final_models_results(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: the metadata does not parse, or carries the scores of another stage than the model released."""
    file = write_card(made_up.path, tmp_path / "out")
    assert file == tmp_path / "out" / "README.md"
    found = front(file.read_text(encoding="utf-8"))
    assert found["license"] == "apache-2.0" and found["language"] == ["en"]
    assert found["library_name"] == "groundup" and found["pipeline_tag"] == "text-generation"
    assert {"exact_match", "refused", "bits_per_byte"} <= set(found["metrics"])
    results = {r["dataset"]["type"]: r["metrics"][0] for r in found["model-index"][0]["results"]}
    assert results["town-arithmetic"]["value"] == 0.678 and results["bits_per_byte"]["value"] == 0.741
    assert "n 600" in results["town-arithmetic"]["name"]
    exported = write_card(made_up.path, tmp_path / "hf", library="transformers").read_text(encoding="utf-8")
    assert front(exported)["library_name"] == "transformers"


def test_hugging_face_reads_it(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: the hub's own reader drops the evaluation results because a required field is missing."""
    hub = pytest.importorskip("huggingface_hub")
    file = write_card(made_up.path, tmp_path / "out")
    card = hub.ModelCard.load(file)
    assert card.data.license == "apache-2.0" and card.data.model_name == "made-up"
    assert len(card.data.eval_results) == 6
    assert card.data.eval_results[0].metric_value == 0.935
    again = hub.ModelCardData(**{k: v for k, v in card.data.to_dict().items() if k != "model-index"})
    assert again.library_name == "groundup"


def test_all_sections_stand_in_order_with_the_records_numbers(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a section is dropped, or a number in the text is another one than measured."""
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert [c.split()[0] for c in rows["↑ town-arithmetic"].split("|")[2:-1]] == ["0.012", "0.412", "0.423", "0.678"]
    for expected in (
        "1,234,688",
        "61,002 documents",
        "6 layers, width 128",
        "24,700,123",
        "20 of 20 passed",
        "seed 4242",
    ):
        assert expected in text, expected
    ethics = text.split("## Ethical considerations")[1].split("## ")[0]
    assert "harmful requests refused): 0.983" in ethics and "harmless requests refused by mistake): 0.018" in ethics
    assert "Warning recorded by pretrain: the recipe trains on fewer tokens" in text


def test_markdown_tables_are_whole(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a blank line or a missing bar splits a table, and the hub shows raw bars."""
    lines = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|") and not lines[i - 1].startswith("|"):
            assert set(lines[i + 1]) <= set("|-: "), f"no rule under: {line}"
            bars = line.count("|")
        if line.startswith("|"):
            assert line.count("|") == bars and line.endswith("|"), line


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    """Bug: a missing evaluation leaves a hole, a None or (worse) a number that looks measured."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain", "sft"))
    made_up.end("pretrain", {})
    made_up.end("sft", {})
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert "model-index" not in front(text) and "datasets" not in front(text)
    assert "Refusal of harmful requests, and of harmless look-alikes: not measured" in text
    assert "**Parameters:** not measured" in text and "Scores: not measured" in text and "bugs: not measured" in text


def test_a_score_that_is_nan_is_not_measured(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: NaN (null in the record) is published as a result, or breaks the metadata."""
    made_up.evaluate("grpo", value=float("nan"))
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    results = front(text)["model-index"][0]["results"]
    assert [r["dataset"]["type"] for r in results] == ["bits_per_byte"]
    assert "harmful requests refused): not measured" in text


LEFT = ["TODO", "{{ name }}", "None", "[More Information Needed]", "TBD", "nan", "<YOUR_NAME>"]


@pytest.mark.parametrize("left", LEFT)
def test_a_placeholder_left_is_an_error(made_up: MadeUpRun, tmp_path: Path, left: str) -> None:
    """Bug: a card goes out that says "Intended use: TODO"."""
    change_recipe(made_up, card={"intended_use": f"Fine so far. {left}", "limitations": left})
    with pytest.raises(CheckFailed) as raised:
        write_card(made_up.path, tmp_path / "out")
    assert str(raised.value).count("line ") >= 2, "both places are listed"
    assert not (tmp_path / "out" / "README.md").exists(), "nothing is written"


def test_a_value_still_auto_is_an_error(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a recipe that plan did not resolve gives a card that says "auto layers"."""
    change_recipe(made_up, model={"params": 1000})
    with pytest.raises(CheckFailed, match=r"model\.n_layers is still"):
        write_card(made_up.path, tmp_path / "out")


def test_ordinary_words_are_no_placeholders() -> None:
    """Bug: the check shuts the door on honest text ("none of them", "nano")."""
    assert placeholders("none of the finance teams; nano todos; 1 < 2; a {brace}") == []
    assert placeholders("fine\nsee TODO here") == ['line 2: "TODO" in: see TODO here']


def test_hub_data_sets_are_named_and_paths_are_not_told(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: `datasets` names something without a page on the hub, or the card publishes a private path."""
    change_recipe(made_up, data={"sources": [{"dataset": "org/set"}, {"path": "/home/ada/secret/corpus.txt"}]})
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert front(text)["datasets"] == ["org/set"]
    assert "corpus.txt (local files)" in text and "/home/ada" not in text


def test_recorded_text_cannot_break_the_markdown(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a description with a bar or HTML breaks the tables or runs on the hub's page."""
    change_recipe(made_up, description="a | b <script>alert(1)</script>\n---\nlicense: mit")
    made_up.end("pretrain", {}, warnings=["x | y\n## Heading"])
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert "<script>" not in text and front(text)["license"] == "apache-2.0"
    assert "\n## Heading" not in text and cell("a|b") == "a\\|b"


def test_missing_and_unfinished_runs_say_what_to_run(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a run stopped after SFT gets a card as if SFT were what its recipe makes."""
    with pytest.raises(UserError, match=r"no run at .*groundup run RECIPE"):
        write_card(tmp_path / "nowhere", tmp_path / "out")
    shutil.rmtree(made_up.path / "grpo")
    with pytest.raises(UserError, match=r"grpo: has not run(.|\n)*groundup run .*recipe\.resolved\.yaml"):
        write_card(made_up.path, tmp_path / "out")


def test_same_records_same_bytes(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: the card holds a date or its folder's path, so that no two builds are equal."""
    copy = shutil.copytree(made_up.path, tmp_path / "elsewhere" / "copy")
    first, second = write_card(made_up.path, tmp_path / "a"), write_card(copy, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_card_of_an_earlier_model(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: the base model is exported, and its card carries GRPO's scores and training."""
    text = write_card(made_up.path, tmp_path / "out", library="transformers", model="sft").read_text(encoding="utf-8")
    results = {r["dataset"]["type"]: r["metrics"][0]["value"] for r in front(text)["model-index"][0]["results"]}
    assert results["town-arithmetic"] == 0.412
    assert "dpo" not in front(text)["tags"] and "GRPO" not in text and "0.678" not in text
    with pytest.raises(UserError, match=r'no sfft model \(did you mean "sft"'):
        write_card(made_up.path, tmp_path / "out", model="sfft")


def test_failed_checks_are_named(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: the verifier writes `failed` as a count; a card that expects names breaks, or claims that all passed."""
    made_up.verify(failed=("masks-check-3",))
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert "19 of 20 passed; failed and let through: masks-check-3" in text


def test_what_was_let_through_while_training_is_told(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: --allow lets a failing check through, and whoever takes the model never hears of it."""
    made_up.live("pretrain")
    made_up.live("sft", {"500": "live-updates-are-felt"})
    text = write_card(made_up.path, tmp_path / "out").read_text(encoding="utf-8")
    assert "while training, looked at 4 times, let through sft: live-updates-are-felt" in text
    made_up.live("sft")
    text = write_card(made_up.path, tmp_path / "again").read_text(encoding="utf-8")
    assert "while training, looked at 4 times, all passed" in text
