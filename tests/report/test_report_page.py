"""The page of a run: its numbers are the records', its text is inert, and it survives what runs really leave."""

from __future__ import annotations

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_run import ANSWERS, TASKS, MadeUpRun

from groundup.errors import UserError
from groundup.record.files import write_json
from groundup.report.collect import Score, collect, report_json
from groundup.report.page import render, write_report
from groundup.report.plots import series, smooth, stage_charts, thin
from groundup.report.show import OFF, cited, facts, growth, side_by_side, value


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> MadeUpRun:
    """A full run, shared and only read."""
    return MadeUpRun(tmp_path_factory.mktemp("runs") / "made-up").all()


@pytest.fixture(scope="module")
def page(made_up: MadeUpRun) -> str:
    return render(collect(made_up.path))


class Elements(HTMLParser):
    """Collects what a browser would act upon, and every id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, found in attrs:
            if name == "id":
                self.ids.append(found or "")
            if name in {"src", "href", "xlink:href", "data", "action"}:
                self.links.append(found or "")
            if name.startswith("on"):
                self.handlers.append(name)


def visible(html: str) -> str:
    """The page's text, without styles, pictures and tags."""
    html = re.sub(r"<(style|svg)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def table(html: str, name: str) -> list[list[str]]:
    """Rows of the table with class `name`: the visible text of each cell."""
    body = re.search(rf'<table class="{name}">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)
    assert body is not None
    rows = re.findall(r"<tr>(.*?)</tr>", body.group(1), flags=re.DOTALL)
    return [
        [visible(c).strip() for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL)] for row in rows
    ]


def test_numbers_are_those_of_the_records(page: str) -> None:
    """Bug: a figure is read from the wrong key, stage or place, and the page tells of another run."""
    text = visible(page)
    for expected in (
        "1,234,688",
        "24,700,123",
        "76,613",
        "0.4123",
        "6,280,533",
        "63,532",
        "21,334",
        "8,912,896",
        "4242",
        "pretrain.learning_rate",
        "Hoffmann et al. 2022",
        "20 of 20",
    ):
        assert expected in text, expected
    assert "11m11s" in text  # 2.5+3+4.25+11+8+330.5+61+42+171 and four evaluations of 9.5 = 671.25 s


def test_every_score_stands_in_its_own_column(page: str, made_up: MadeUpRun) -> None:
    """Bug: the SFT column shows DPO's scores (or one task's row another's), and nobody can see it."""
    for name in ("final", "scores"):
        rows = {row[0].split()[1]: row[1:] for row in table(page, name)}
        for task, (_, _, _, values) in TASKS.items():
            for cell, expected in zip(rows[task], values, strict=True):
                assert f"{expected:.3f}" in cell
    results = json.loads((made_up.path / "evaluate-sft" / "results.json").read_text())["tasks"]["town-facts"]
    cell = next(row for row in table(page, "scores") if "town-facts" in row[0])[2]
    assert f"{results['low']:.3f} – {results['high']:.3f}" in cell
    assert "n 600" in cell


def test_better_follows_the_direction_of_the_task() -> None:
    """Bug: refusing more harmless look-alikes is praised as an improvement."""
    low, high = Score(0.1, 0.08, 0.12), Score(0.5, 0.45, 0.55)
    assert high.against(low) == "better" and low.against(high) == "worse"
    fault = Score(0.5, 0.45, 0.55, higher_is_better=False)
    assert fault.against(Score(0.1, 0.08, 0.12, higher_is_better=False)) == "worse"
    assert Score(0.13, 0.10, 0.16).against(low) == "", "overlapping intervals decide nothing"
    assert Score(0.9).against(low) == "", "no interval, no verdict"


def test_compression_stands_beside_the_compressors(page: str) -> None:
    """Bug: the share is computed the wrong way round, or against the wrong model's bits per byte."""
    assert f"{100 * (1 - 0.614 / 1.613):.1f}% fewer bits than xz" in visible(page)
    assert f"{100 * (1 - 0.614 / 1.702):.1f}% fewer bits than zstd-19" in visible(page)


def test_json_equals_the_records(made_up: MadeUpRun) -> None:
    """Bug: the JSON drifts from the page, or holds a value that JSON cannot carry (NaN, a path)."""
    found = report_json(made_up.path)
    json.dumps(found, allow_nan=False)
    assert [m["stage"] for m in found["models"]] == ["base", "sft", "dpo", "grpo"]
    assert found["models"][3]["scores"]["town-arithmetic"]["value"] == 0.678
    assert found["compressors"] == {"xz": 1.613, "zstd-19": 1.702}
    assert found["seconds"] == pytest.approx(671.25)
    assert found["training"]["pretrain"]["tokens"] == 24_700_123


def test_page_is_self_contained_and_runs_nothing(page: str) -> None:
    """Bug: the page needs a CDN (blank offline), or two inline SVGs share an id and one clips the other away."""
    found = Elements(page)
    assert not {"script", "link", "iframe", "object", "img"} & set(found.tags)
    assert not found.handlers
    assert [link for link in found.links if not link.startswith("#")] == []
    assert "@import" not in page and "url(http" not in page
    assert len(found.ids) == len(set(found.ids))
    for link in [*found.links, *re.findall(r"url\((#[^)]+)\)", page)]:
        assert link[1:] in found.ids, f"{link} leads nowhere"
    assert found.tags.count("svg") >= 15


def test_charts_follow_light_and_dark(page: str) -> None:
    """Bug: a stand-in colour is left in a chart, or a variable is not defined: black lines on a black page."""
    assert not re.search(r"#0[0-9a-f]0b0c", page)
    defined = set(re.findall(r"--([a-z0-9-]+):", page))
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) <= defined
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"(fill|stroke): #", svgs), "a fixed colour does not follow the theme"
    assert "<style" not in svgs, "a style inside an inline SVG rules the whole page"


ATTACKS = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</pre></textarea><svg onload=alert(1)>"]


@pytest.mark.parametrize("bad", ATTACKS)
def test_text_from_the_records_is_inert(tmp_path: Path, bad: str) -> None:
    """Bug: a sampled answer (or any recorded text) becomes part of the page's code."""
    made_up = MadeUpRun(tmp_path / "run").all()
    made_up.evaluate("sft", answers=ANSWERS | {"sft": bad})
    made_up.jsonl("pretrain", [{"step": 1, "prompt": bad, "text": bad}])
    made_up.end("pretrain", {"tokens": 1}, warnings=[bad])
    made_up.end("data", {bad: bad})
    made_up.end("tokenizer", {"longest_tokens": [bad], "failed": [bad]})
    results = json.loads((tmp_path / "run/evaluate-base/results.json").read_text())
    results["tasks"][bad] = results["tasks"]["town-facts"] | {"description": bad, "metric": bad}
    write_json(tmp_path / "run/evaluate-base/results.json", results)
    made_up.end("evaluate-base", {"baseline": {bad: 1.5}})
    plan = json.loads((tmp_path / "run/plan/plan.json").read_text())
    write_json(
        tmp_path / "run/plan/plan.json", plan | {"resolved": [dict.fromkeys(("key", "value", "reason", "source"), bad)]}
    )
    made_up.end("plan", {})
    checks = [{"id": bad, "family": bad, "passed": False, "measured": bad, "bound": bad, "remedy": bad, "seconds": 0.1}]
    write_json(tmp_path / "run/verify/report.json", {"checks": checks, "failed": 1})
    made_up.end("verify", {})
    html = render(collect(tmp_path / "run"))
    found = Elements(html)
    assert not {"script", "img", "textarea"} & set(found.tags)
    assert not found.handlers
    assert html.count(bad) == 0
    assert html.count("alert(1)") > 12, "the text itself is shown"


def test_missing_values_are_gaps_not_zeros(made_up: MadeUpRun) -> None:
    """Bug: a NaN loss (null in the log) breaks the plot, or is drawn as a zero that looks like a miracle."""
    rows = collect(made_up.path).training["pretrain"].rows
    steps, losses = series(rows, "loss", held_out=False)
    assert math.isnan(losses[steps.index(730)])
    assert sum(map(math.isfinite, losses)) == len(losses) - 1
    assert math.isnan(smooth(losses)[steps.index(730)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_log_of_nothing_finite_still_makes_a_page(tmp_path: Path, bad: float | None) -> None:
    """Bug: the run that went wrong, whose report matters most, is the one that cannot be drawn."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain",)).all()
    (tmp_path / "run/pretrain/metrics.jsonl").unlink()
    made_up.log(
        "pretrain", [{"step": s, "loss": bad, "grad_norm": bad, "tokens_per_second": 0.0, "skipped": 1} for s in (1, 2)]
    )
    made_up.end("pretrain", {"tokens": 9, "bits_per_byte": bad, "mfu": bad})
    made_up.evaluate("base", value=math.nan)
    run = collect(tmp_path / "run")
    assert not stage_charts(run.training["pretrain"])
    html = visible(render(run))
    assert "holds no finite value" in html and "not measured" in html
    assert " nan" not in html.lower() and " inf " not in html.lower()


def test_training_and_held_out_values_are_not_mixed(made_up: MadeUpRun) -> None:
    """Bug: GRPO's held-out accuracy and the accuracy on its training prompts are joined into one zigzag."""
    rows = [
        {"step": 1, "loss": 0.1, "accuracy": 0.9},
        {"step": 1, "accuracy": 0.4},
        {"step": 2, "loss": 0.1, "accuracy": 0.8},
    ]
    assert series(rows, "accuracy", held_out=True) == ([1.0], [0.4])
    assert series(rows, "accuracy", held_out=False) == ([1.0, 2.0], [0.9, 0.8])
    run = collect(made_up.path)
    assert [label for _, label in stage_charts(run.training["grpo"])[0].legend] == ["mean reward", "held-out accuracy"]
    for chart in stage_charts(run.training["dpo"])[:3]:
        assert [label for _, label in chart.legend] == ["training", "held-out"]


def test_smoothing_does_not_lag() -> None:
    """Bug: a running mean draws the curve later than it was measured: a falling loss looks worse than it is."""
    line = [float(i) for i in range(200)]
    assert smooth(line) == pytest.approx(line)


def test_long_curves_are_thinned_to_their_last_point() -> None:
    """Bug: a log of 100,000 steps makes a page of 50 MB, or the curve stops before the run's end."""
    x, y = thin([float(i) for i in range(100_001)], [float(-i) for i in range(100_001)])
    assert len(x) <= 601 and x[-1] == 100_000 and y[-1] == -100_000


def test_absent_stages_are_left_out_and_named(tmp_path: Path) -> None:
    """Bug: a recipe without DPO cannot be reported on, or a stage not yet run shows an empty section."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain", "sft", "grpo")).all()
    shutil.rmtree(tmp_path / "run/grpo")
    shutil.rmtree(tmp_path / "run/evaluate-grpo")
    shutil.rmtree(tmp_path / "run/verify")
    shutil.rmtree(tmp_path / "run/verify-model")
    run = collect(made_up.path)
    assert [a.stage for a in run.absent] == ["verify-model", "verify", "grpo", "evaluate-grpo"] and run.not_asked == [
        "dpo"
    ]
    html = render(run)
    assert "grpo (has not run)" in visible(html) and "The recipe leaves out: dpo." in visible(html)
    assert 'id="curves-grpo"' not in html and 'id="curves-dpo"' not in html and 'id="curves-sft"' in html
    assert len(table(html, "final")[0]) == 3
    assert "The checks for silent bugs were not run" in html


def test_bare_run_of_pretraining_alone(tmp_path: Path) -> None:
    """Bug: a record without one of its optional parts (no plan, no evaluation, no log) raises instead of saying so."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain",))
    made_up.end("pretrain", {})
    html = visible(render(collect(made_up.path)))
    assert "not measured" in html and "The plan was not recorded" in html and "Bits per byte: not measured" in html
    assert "None of the stages recorded a warning" in html


def test_changed_results_are_not_shown(tmp_path: Path) -> None:
    """Bug: somebody edits results.json by hand and the report passes it on as measured."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain", "sft")).all()
    file = tmp_path / "run/evaluate-sft/results.json"
    file.write_text(file.read_text().replace("0.941", "0.999"))
    run = collect(made_up.path)
    assert run.models == ["base"]
    html = render(run)
    assert "0.999" not in visible(html) and "has changed since the stage ended" in html
    assert str(tmp_path) not in html, "the page tells nothing about this machine's folders"


def test_same_records_same_bytes(made_up: MadeUpRun, tmp_path: Path) -> None:
    """Bug: a date, a random id or the folder's place gets into the page, and a rebuild never compares equal."""
    first = write_report(made_up.path, tmp_path / "a")
    copy = shutil.copytree(made_up.path, tmp_path / "elsewhere" / "copy")
    second = write_report(copy, tmp_path / "b.html")
    assert first.name == "report.html" and second == tmp_path / "b.html"
    assert first.read_bytes() == second.read_bytes()


def test_readers_matplotlib_settings_change_nothing(page: str, made_up: MadeUpRun) -> None:
    """Bug: a matplotlibrc (or a caller's rcParams) changes fonts and colours, or the report changes the caller's."""
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": False, "lines.linewidth": 9}):
        assert render(collect(made_up.path)) == page
        assert matplotlib.rcParams["font.size"] == 31.0


def test_missing_and_unfinished_runs_say_what_to_run(tmp_path: Path) -> None:
    """Bug: a wrong path, or a run stopped half way, ends in a traceback."""
    with pytest.raises(UserError, match=r"no run at .*groundup run RECIPE"):
        collect(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not a run"):
        collect(tmp_path)
    made_up = MadeUpRun(tmp_path / "run")
    made_up.plan()
    with pytest.raises(UserError, match=r"pretrain has not run.*groundup run .*recipe\.resolved\.yaml --runs"):
        write_report(made_up.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_are_joined_by_question(tmp_path: Path) -> None:
    """Bug: answers are set side by side by row number, and a model is shown answering another's question."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain", "sft")).all()
    file = tmp_path / "run/evaluate-sft/samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["answer"] = f"answer to {row['id']}"
    made_up.jsonl("evaluate-sft", rows[::-1][:-1])  # another order, and the first question is missing
    made_up.end("evaluate-sft", {})
    shown = side_by_side(collect(made_up.path))
    facts = [sample for sample in shown if sample["task"] == "town-facts"]
    assert [sample["answers"][1]["text"] for sample in facts] == [
        "answer to town-facts-0001",
        "answer to town-facts-0002",
    ]


def test_marks_follow_the_task_not_the_score(made_up: MadeUpRun) -> None:
    """Bug: refusing a harmless request (score 1 of a fault) gets a tick."""
    run = collect(made_up.path)
    lookalike = next(s for s in side_by_side(run) if s["task"] == "town-lookalikes")
    assert [a["mark"] for a in lookalike["answers"]] == ["bad", "good", "good", "good"]


def test_samples_of_a_resumed_run_appear_once(tmp_path: Path) -> None:
    """Bug: a killed and resumed run has sampled a step twice, and the page shows both texts."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain",)).all()
    made_up.jsonl("pretrain", [{"step": 5, "prompt": "The", "text": f"The {word}"} for word in ("old", "new")])
    made_up.end("pretrain", {})
    assert growth(collect(made_up.path).training["pretrain"]) == [
        {"prompt": "The", "moments": [{"step": 5, "text": " new"}]}
    ]


def test_warnings_include_what_the_numbers_say(tmp_path: Path) -> None:
    """Bug: skipped steps, a failed check or a mix of versions go unmentioned because no stage wrote a warning."""
    made_up = MadeUpRun(tmp_path / "run", stages=("pretrain",)).all()
    made_up.verify(failed=("masks-check-3",))
    file = tmp_path / "run/data/stage.json"
    record = json.loads(file.read_text())
    record["versions"]["torch"] = "0.0.1"
    write_json(file, record)
    warned = collect(made_up.path).warnings()
    assert ("verify", "the check masks-check-3 failed") in warned
    assert ("pretrain", "steps that were not finite, and skipped: 1") in warned
    assert any("different versions of torch" in text for _, text in warned)
    html = render(collect(made_up.path))
    assert "<details open>" in html and "look at the mask" in html


@pytest.mark.parametrize(
    ("found", "key", "expected"),
    [
        (None, "", "not measured"),
        (True, "", "yes"),
        (1_234_567, "", "1,234,567"),
        (0.0147, "", "0.0147"),
        (2.2e14, "flops", "2.2e+14"),
        (24_117_248, "bytes", "24,117,248 (23.0 MiB)"),
        (95.0, "train_seconds", "1m35s"),
        ([1, 2], "", "1, 2"),
        ("a", "", "a"),
        (0, "", "0"),
    ],
)
def test_values_keep_their_size_and_unit(found: object, key: str, expected: str) -> None:
    """Bug: a missing value prints as None, or a count is rounded so far that it no longer is the record's."""
    assert value(found, key) == expected


def test_nested_records_read_as_words() -> None:
    """Bugs: the data section shows Python's own spelling of a dict, or drops what is nested; a setting that is off is
    "not measured"."""
    found = facts(
        {"train": {"tokens": 7}, "sources": [{"source": "a.txt", "documents": 1200}], "left": 1}, leave=["left"]
    )
    assert found == [("train: tokens", "7"), ("sources", "a.txt, 1,200 documents")]
    off = {"rope_scaling": None, "moe": None, "latent": {"rank": None}, "d_model": 8}
    assert [shown for _, shown in facts(off, missing=OFF)] == ["none", "none", "none", "8"]
    assert facts({"loss": None}) == [("loss", "not measured")]
    assert cited("1706.03762") == "arXiv 1706.03762" and cited("this machine") == "this machine" and cited(None) == ""


def test_what_is_off_was_not_left_unmeasured(page: str) -> None:
    """Bug: the page says "not measured" of experts that the model does not have."""
    assert "<dt>moe</dt><dd>none</dd>" in page and "<dd>not measured</dd>" not in page.partition("<dt>moe</dt>")[2][:40]


def test_vital_signs_are_shown_and_failures_warned_of(made_up: MadeUpRun) -> None:
    """Bug: what the live checks saw stays in a file that nobody opens."""
    made_up.live("pretrain", {"500": "live-updates-are-felt"})
    page = render(collect(made_up.path))
    section = page[page.index("Vital signs while training") :]
    assert "looked at 2 times" in section and "1 failed" in section and "0.0123" in section
    assert "the live check live-updates-are-felt failed, and was let through" in page
    assert report_json(made_up.path)["live"]["pretrain"]["500"]["failed"] == 1
