"""Rows as published are read whatever their layout, and what is wrong with them is found, by row."""

from __future__ import annotations

import gzip
import json
import os
import re
from math import comb
from pathlib import Path
from typing import Any

import pytest

from groundup.data import town
from groundup.errors import UserError
from groundup.recipe.schema import ChatSource, SftSource
from groundup.verify import tally, traces
from groundup.verify.check import REGISTRY, Measurement, NotApplicable
from groundup.verify.faults import dataset as sound
from groundup.verify.layouts import Example, read
from groundup.verify.rows import Row, Rows, open_rows, rows_of
from groundup.verify.run import applicable, report, run_checks

CHECKS = [c for c in REGISTRY.values() if c.looks_at == "dataset"]
PUBLISHED = Path(os.environ.get("GROUNDUP_DATA", "../shared/data"))


def look(rows: Rows, check: str) -> Measurement:
    """What one check measures on them."""
    return REGISTRY[check].run(rows)


def failing(rows: Rows) -> dict[str, int]:
    """{check: number of findings} of those that fail."""
    return {r.id: int(r.measured or 0) for r in run_checks(rows) if r.failed}


def numbers(note: str) -> list[int]:
    """Row numbers that a note names."""
    said = re.sub(r"'[^']*'|\"[^\"]*\"", "", note.partition(". ")[2])
    return [int(n) for n in re.findall(r"(?<![\d.])\d+(?![\d.])", said)]


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows))
    return path


# ---- layouts ----

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": SHARED},
        {"Instruction": "Hi", "input": "", "Output": "Hello"},
        {"instruction": "Hi", "response": "Hello"},
        {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": TURNS[:1], "completion": "Hello"},
        {"goal": "Hi", "target": "Hello"},
        {"text": "### Human: Hi ### Assistant: Hello"},
        {"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello", "role": "assistant"}]}},
    ],
    ids=lambda row: ",".join(row),
)  # fmt: skip
def test_layouts_of_conversations(row):
    """Bug: one layout keeps a marker, loses the answer, or is not known."""
    (example,) = read(row)
    assert (example.kind, example.messages) == ("conversations", TURNS)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
        {"question": "Hi", "chosen": "Hello", "rejected": "Go"},
        {"instruction": "Hi", "input": "", "output": "x", "chosen": "Hello", "rejected": "Go"},
        {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "Go"}},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "Go"}]},
        {"prompt": "Hi", "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "Go"}]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"},
    ],
    ids=lambda row: ",".join(row),
)
def test_layouts_of_pairs(row):
    """Bug: the prompt is taken for a part of the answers, or chosen for rejected."""
    (example,) = read(row)
    assert example.kind == "pairs" and example.messages == TURNS[:1] and example.other_prompt is None
    assert (example.answer, example.rejected) == ("Hello", "Go")


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 1}, "b"),
        ({"question": "q", "choices": ["a", "b"], "answer": "B"}, "b"),
        ({"question": "q", "choices": ["a", "b"], "answer": "b"}, "b"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}, "b"),
        ({"ctx": "q", "endings": ["a", "b"], "label": 1}, "b"),
        ({"Question Stem": "q", "Choices": "(A) a (B) b", "Answer Key": "B"}, "b"),
        ({"question": "q", "ans0": "a", "ans1": "b", "label": 1}, "b"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, None),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, None),
        ({"question": "q", "choices": ["1", "2"], "answer": "1"}, "1"),
    ],
)
def test_layouts_of_choices(row, right):
    """Bug: letters, indices and the texts themselves are mixed up; what is past the end picks the last."""
    (example,) = read(row)
    assert (example.kind, example.answer) == ("choices", right)


def test_other_layouts():
    """Bug: labelled text is taken for a text to pretrain on, a problem for a conversation."""
    assert [read(row)[0].kind for row in (
        {"text": "a", "label": 0}, {"sentence": "a", "category": "x"}, {"text": "a"},
        {"question": "q", "answer": "#### 2"}, {"text": "write f", "code": "def f(): ..."},
    )] == ["labels", "labels", "texts", "problems", "problems"]  # fmt: skip
    with pytest.raises(ValueError, match="no layout has the fields a, b"):
        read({"a": 1, "b": 2})


def test_a_tree_is_all_its_paths():
    """Bug: only the first reply is read; or replies of one prompt count as repeats of it."""
    reply = {"role": "assistant", "replies": []}
    tree = {"text": "Hi", "role": "prompter", "replies": [{**reply, "text": "Hello"}, {**reply, "text": "Good day"}]}
    examples = read({"prompt": tree})
    assert [e.messages[-1]["content"] for e in examples] == ["Hello", "Good day"]
    rows = Rows("trees", [Row("line 1", e) for e in examples])
    assert look(rows, "prompts-do-not-repeat").passed and look(rows, "one-prompt-one-answer").passed


# ---- files ----


@pytest.mark.parametrize("make", sound.SOUND, ids=lambda make: make.__name__)
def test_sound_files_pass_everything(make, monkeypatch):
    """Bug: a check cries wolf, and is switched off."""
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    rows = make()
    assert not rows.refused and failing(rows) == {}
    ran = [r for r in run_checks(rows) if r.skipped is None]
    assert len(ran) >= 6 and all(r.passed for r in ran)


def test_every_check_of_rows_looks_at_some_sound_file(monkeypatch):
    """Bug: a check that applies to nothing passes nothing."""
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    looked = {r.id for make in sound.SOUND for r in run_checks(make()) if r.skipped is None}
    assert {c.id for c in CHECKS} - looked == {"no-benchmark-in-the-rows"}
    assert {c.id for c in applicable(sound.pairs())} == {c.id for c in CHECKS}


def test_bad_rows_are_findings_with_their_numbers(tmp_path):
    """Bug: one bad row stops the look at the others, or is passed over; numbers count the good rows alone."""
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"instruction": "Say a.", "output": "A."})
    bad = ["{broken", "", "[1]", '{"instruction": "x"}', '{"instruction": "y", "output": null}']
    path.write_text("\n".join([good, *bad, good.replace("a.", "b.")]))
    rows = open_rows(path)
    assert [row.where for row in rows.rows] == ["line 1", "line 7"]
    assert [where for where, _ in rows.refused] == ["line 2", "line 4", "line 5", "line 6"]
    found = look(rows, "rows-are-readable")
    assert not found.passed and found.value == 4 and found.note.startswith("4 of 6 rows. line 2: not valid JSON")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            '{"a": 1}\n{"b": 2}\n',
            "none of its 2 rows can be used .line 1: no layout has the fields a;.*Known",
        ),
        ("a.jsonl", "", "no rows in it"),
        ("a.json", "{}", "a list of JSON objects is needed at the top, this is a dict"),
        ("a.json", "[", "not valid JSON"),
        ("a.csv", "x,y,z\n1,2,3\n", "no layout has the fields x, y, z, and no column holds labels"),
        ("a.txt", "hello", 'do not know the ending ".txt"'),
        ("a.jsonl", b"\xff\xfe", "not valid UTF-8"),
    ],
)
def test_files_without_a_usable_row_are_refused(tmp_path, name, content, said):
    """Bug: a traceback, or an empty report that looks like a pass."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=said):
        open_rows(tmp_path / name)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        open_rows(tmp_path / "gone.json")


def test_tables_keep_the_lines_of_the_file(tmp_path):
    """Bug: rows are counted where the file has lines; a field with a line break shifts all that follow."""
    path = tmp_path / "t.csv"
    path.write_text('text,category\n"one\ntwo",a\nthree,b\nshort\n,b\n"one two",b\nfour,a\n')
    rows = open_rows(path)
    assert [row.where for row in rows.rows] == ["line 2", "line 4", "line 6", "line 7", "line 8"]
    assert rows.refused == [("line 5", "1 fields, where the others have 2")]
    assert look(rows, "one-text-one-label").note == "1 group, 2 of 5 rows. lines 2, 7: 'one\\ntwo' is a and b"
    assert numbers(look(rows, "prompts-are-not-empty").note) == [6]


def test_tables_without_names(tmp_path):
    """Bug: the first row is taken for names; empty columns behind the text, or a lone quote, swallow rows."""
    path = tmp_path / "t.tsv"
    path.write_text('ham\tHe said "no\t\nspam\t"WIN ""now"""\t\nham\tok then\t\nspam\tclick\t\n' * 3)
    rows = open_rows(path)
    assert rows.holds == "labels" and len(rows.rows) == 12
    assert [row.example.text for row in rows.rows[:3]] == ['He said "no', 'WIN "now"', "ok then"]
    path.write_text('0\t"open\n1\tclosed\n0\tthird\n1\tfourth\n')
    rows = open_rows(path)
    assert [row.example.text for row in rows.rows] == ['"open', "closed", "third", "fourth"]
    quiz = tmp_path / "quiz.csv"
    quiz.write_text('What is 1 + 1?,1,2,3,4,B\n"What, then?",a,b,c,d,A\n')
    assert [(row.where, row.example.answer) for row in open_rows(quiz).rows] == [("line 1", "2"), ("line 2", "a")]


def test_parquet_and_compressed_files(tmp_path):
    """Bug: only the endings that were tried are opened."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([{"text": f"text {n}", "label": n % 2} for n in range(6)])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    assert [row.where for row in open_rows(tmp_path / "a.parquet").rows][-1] == "row 6"
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "a", "label": 1}\n')
    assert open_rows(tmp_path / "a.jsonl.gz").holds == "labels"


def test_sides_of_a_split(tmp_path, monkeypatch):
    """Bug: files beside another file are taken for its test; a column of splits is not seen."""
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(6)]
    write(tmp_path, "train.jsonl", rows), write(tmp_path, "dev.jsonl", rows[3:]), write(tmp_path, "other.jsonl", rows)
    train = open_rows(tmp_path / "train.jsonl")
    assert {name: len(side) for name, side in train.sides.items()} == {"train.jsonl": 6, "dev.jsonl": 3}
    assert look(train, "train-and-test-share-no-prompt").value == 3
    assert open_rows(tmp_path / "other.jsonl").sides == {}
    with pytest.raises(NotApplicable, match="without a split"):
        look(open_rows(tmp_path / "other.jsonl"), "train-and-test-share-no-prompt")
    write(tmp_path, "c.jsonl", [{**row, "split": ("train", "test")[n > 3]} for n, row in enumerate(rows)])
    assert {name: len(side) for name, side in open_rows(tmp_path / "c.jsonl").sides.items()} == {"train": 4, "test": 2}


# ---- a recipe's sources ----


def test_sources_of_a_recipe(tmp_path):
    """Bug: the recipe's rows are read otherwise than its stage reads them, or max_documents is not heeded."""
    write(tmp_path, "a.json", [{"instruction": f"Say {n}.", "output": f"{n}."} for n in range(9)])
    write(tmp_path, "b.jsonl", [{"text": "### Human: Hi ### Assistant: Hello"}, {"text": "no markers"}])
    rows = rows_of([SftSource(path="a.json", max_documents=3), SftSource(path="b.jsonl")], tmp_path)
    assert rows is not None and rows.holds == "conversations"
    assert [row.where for row in rows.rows] == ["a.json row 1", "a.json row 2", "a.json row 3", "b.jsonl line 1"]
    assert [where for where, _ in rows.refused] == ["b.jsonl line 2"]
    assert rows_of([SftSource(builtin="town")], tmp_path) is None
    with pytest.raises(UserError, match="no such file"):
        rows_of([SftSource(path="gone.json")], tmp_path)
    write(tmp_path, "p.json", [{"prompt": "Hi", "chosen": "a", "rejected": "b"}])
    write(tmp_path, "q.json", [{"question": "1 + 1?", "answer": "#### 2"}])
    for name, kind in (("p.json", "pairs"), ("q.json", "problems")):
        found = rows_of([ChatSource(path=name)], tmp_path)
        assert found is not None and found.holds == kind


def test_a_recipe_refuses_what_its_stage_refuses(tmp_path):
    """Bug: a layout that the stage cannot read is reported as sound."""
    path = write(tmp_path, "s.json", [{"conversations": SHARED}])
    assert not open_rows(path).refused
    rows = rows_of([SftSource(path="s.json")], tmp_path)
    assert rows is not None and not rows.rows and not look(rows, "rows-are-readable").passed


# ---- what the checks tell ----


def test_notes_name_ten_and_number_fifty(tmp_path):
    """Bug: a thousand rows in one line, or a count without a single place."""
    rows = open_rows(write(tmp_path, "a.json", [{"instruction": f"Say {n}.", "output": ""} for n in range(70)]))
    found = look(rows, "answers-are-not-empty")
    assert found.value == 70 and found.note.startswith("70 of 70 rows. row 1: answer ''; row 2:")
    assert found.note.count("answer ''") == 10 and found.note.endswith("row 49, row 50, and 20 not named")
    assert numbers(found.note)[:51] == [*range(1, 11), 60, *range(11, 51)]


def test_the_report_holds_every_row(tmp_path):
    """Bug: "and 20 not named", or "and 64 more" of a group: no way to learn which, to mend them."""
    rows = open_rows(write(tmp_path, "a.json", [{"instruction": "Say it.", "output": ""}] * 70))
    found = {one["id"]: one for one in report(run_checks(rows))["checks"]}
    empty, again = found["answers-are-not-empty"], found["prompts-do-not-repeat"]
    assert empty["found"] == [{"where": f"row {n}", "what": "answer ''"} for n in range(1, 71)]
    assert [one["where"] for one in again["found"]] == ["rows " + ", ".join(map(str, range(1, 71)))]
    assert again["note"].endswith("rows 1, 2, 3, 4, 5, 6 and 64 more: 'Say it.'")
    assert "found" not in found["text-is-clean"]


def test_notes_can_be_printed(tmp_path):
    """Bug: half a surrogate pair in a note breaks the report's own output."""
    rows = open_rows(write(tmp_path, "a.json", [{"instruction": "Say it.", "output": "\ud83d oh"}] * 2))
    results = run_checks(rows)
    assert {r.id for r in results if r.failed} >= {"text-is-clean", "prompts-do-not-repeat"}
    for result in results:
        result.note.encode()


def test_nothing_looked_at_is_no_pass():
    """Bug: a file whose rows are all refused passes the other checks."""
    rows = Rows("none", [], [("row 1", "broken")])
    assert not any(r.passed for r in run_checks(rows))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Cafe\u0301, naïve, Ærø, 50 °C, „Ä“, à » b, ESPAÑA, 10€, ½, Ñandú, 你好，世界", False),
        ("fiancÃ© Cal", True),
        ("donâ€™t", True),
        ("25Â°C", True),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", True),
        ("ðŸ˜€", True),
        ("a\ufffdb", True),
        ("a\x00b", True),
        ("don\x92t", True),
        ("tabs\tand\r\nlines", False),
        ("fish &amp; chips", True),
        ("AT&T; R&D", False),
        ("one<br/>two", True),
        ("if a <b and c> d", False),
    ],
)
def test_damage_is_told_from_foreign_text(text, wrong):
    """Bug: accents are reported, or their wreck is not."""
    assert bool(list(traces.broken(text))) == wrong


def test_markup_is_no_damage_where_it_is_the_subject():
    """Bug: rows about web pages are reported for their tags, or {{ }} of their templates for unfilled fields."""
    row = {"instruction": "Write HTML that centres a text.", "output": "<div style='x'>{{ text }} &amp; more</div>"}
    rows = Rows("a", [Row("row 1", read(row)[0])])
    assert look(rows, "text-is-clean").passed and look(rows, "no-template-is-left").passed
    plain = Rows("a", [Row("row 1", read({**row, "instruction": "Who are you?", "output": "I am {{name}}."})[0])])
    assert not look(plain, "no-template-is-left").passed


@pytest.mark.parametrize(
    "text", ["", " \n", "N/A", "n/a.", "None", "<noinput>", "<No Output>", "null", "...", "[deleted]"]
)
def test_no_answers(text):
    assert traces.is_no_answer(text)


@pytest.mark.parametrize("text", ["0", "No.", "?", "Nonet", "I have no output to show.", "да"])
def test_short_answers_are_answers(text):
    assert not traces.is_no_answer(text)


def test_lower_end_of_the_interval():
    """Clopper-Pearson by its definition, and the tail against a count by hand."""
    low = tally.lower(60, 80, 5e-7)
    assert sum(comb(80, i) * low**i * (1 - low) ** (80 - i) for i in range(60, 81)) == pytest.approx(5e-7, rel=1e-6)
    assert tally.lower(0, 5, 5e-7) == 0.0
    assert tally.lower(5, 5, 5e-7) == pytest.approx(5e-7 ** (1 / 5))
    assert tally.tail(2, 6, 3, 3) == pytest.approx((comb(3, 2) * comb(3, 1) + 1) / comb(6, 3))
    assert tally.tail(0, 6, 3, 3) == pytest.approx(1.0)


def test_length_needs_more_than_a_habit():
    """Bug: better answers that are a little longer fail; a hundred pairs by length alone pass."""

    def pairs(share: float, n: int) -> Rows:
        long, short = "a long answer", "short"
        made = [(long, short) if k < share * n else (short, long) for k in range(n)]
        return Rows("p", [Row(f"row {k}", Example("pairs", TURNS[:1], *both)) for k, both in enumerate(made, 1)])

    check = "length-gives-nothing-away"
    assert look(pairs(0.60, 20_000), check).passed
    assert not look(pairs(0.66, 20_000), check).passed
    assert not look(pairs(0.0, 100), check).passed  # the shorter always
    assert look(pairs(0.7, 100), check).passed  # chance could do that
    with pytest.raises(NotApplicable, match="too few"):
        look(pairs(1.0, 31), check)


def test_labels_tell_the_score_to_beat():
    rows = Rows("l", [Row(f"row {n}", Example("labels", [], "ab"[n % 4 == 0], text=f"t{n}")) for n in range(1, 41)])
    assert look(rows, "labels-are-known").note.endswith("the largest is 'a' with 75.0% of 40 rows")
    alone = Rows("l", [*rows.rows, Row("row 41", Example("labels", [], "c", text="t41"))])
    assert look(alone, "labels-are-known").note.startswith("1 of 3 labels. row 41: the only row labelled 'c'")


def test_a_benchmark_in_the_rows(tmp_path, monkeypatch):
    """Bug: overlap is sought in whole lines, or idioms of code and counting are reported as copies."""
    (tmp_path / "bench" / "deep").mkdir(parents=True)
    asked = "A farmer keeps twelve brown goats and sells half of them before the market closes today."
    (tmp_path / "bench" / "deep" / "b.csv").write_text(
        f'q,a\n"Well: {asked.upper()}",6\n1 2 3 4 5 6 7 8 9 10 11 12 13,x\n'
    )
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path))
    answers = ["No.", f"Once: {asked} So it is.", " ".join(map(str, range(1, 20)))]
    path = write(tmp_path, "a.json", [{"instruction": f"Say {n}.", "output": a} for n, a in enumerate(answers)])
    found = look(open_rows(path), "no-benchmark-in-the-rows")
    assert found.value == 1 and found.note.startswith("1 of 3 rows. row 2: deep/b.csv, 'a farmer keeps")
    with pytest.raises(NotApplicable, match="itself one of the benchmark files"):
        (tmp_path / "bench" / "c.json").write_text(path.read_text())
        look(open_rows(tmp_path / "bench" / "c.json"), "no-benchmark-in-the-rows")
    monkeypatch.delenv("GROUNDUP_DATA")
    with pytest.raises(NotApplicable, match="no benchmark files"):
        look(open_rows(path), "no-benchmark-in-the-rows")


# ---- the town's own ----


@pytest.mark.parametrize("supply", [town.conversations, town.preferences, town.problems])
def test_the_town_is_clean(supply):
    """Bug: groundup's own rows have what the verifier finds in others'. Prompts repeat: the supply is endless, the town
    is small; what is held out shares none of them."""
    rows = Rows("town", [Row(f"row {n}", read(row)[0]) for n, row in enumerate(supply(3, 3000), 1)])
    found = {r.id: r for r in run_checks(rows) if r.failed}
    assert set(found) <= {"prompts-do-not-repeat", "one-prompt-one-answer"}, found
    assert len(rows.sides["held out"]) == 60


# ---- what is known of published files ----


def published(name: str) -> Rows:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    return open_rows(path)


KNOWN: list[tuple[str, str, int, list[int]]] = [
    ("instruct/rasbt_instruction.json", "prompts-do-not-repeat", 5, [21, 168, 82, 310, 134, 185, 193, 235, 199, 273]),
    ("instruct/rasbt_instruction.json", "one-prompt-one-answer", 5, [21, 168, 82, 310, 134, 185, 193, 235, 199, 273]),
    ("instruct/rasbt_instruction.json", "answers-are-not-empty", 0, []),
    ("instruct/rasbt_instruction.json", "train-and-test-share-no-prompt", 0, []),
    ("preference/rasbt_preference.json", "chosen-differs-from-rejected", 1, [236]),
    ("preference/rasbt_preference.json", "prompts-do-not-repeat", 5, [21, 168, 82, 310, 134, 185, 193, 235, 199, 273]),
    ("preference/rasbt_preference.json", "answers-are-not-empty", 0, []),
    ("preference/hh_harmless.jsonl", "answers-are-not-empty", 2, [230, 643]),
    ("preference/hh_harmless.jsonl", "roles-alternate-and-end-with-assistant", 4, [504, 740, 783, 785]),
    ("preference/hh_harmless.jsonl", "chosen-differs-from-rejected", 0, []),
    ("preference/hh_harmless.jsonl", "answers-do-not-echo-the-prompt", 1, [455]),
    ("classify/sms_spam.tsv", "one-text-one-label", 0, []),
    ("classify/banking77/train.csv", "prompts-do-not-repeat", 4, [1248, 1292, 1716, 1732, 4605, 4606, 6922, 6977]),
    ("instruct/identity/identity.json", "prompts-do-not-repeat", 2, [17, 18, 21, 62]),
]


@pytest.mark.parametrize(("name", "check", "count", "rows"), KNOWN, ids=[f"{k[0]}-{k[1]}" for k in KNOWN])
def test_known_flaws_of_published_files(name, check, count, rows):
    """Counted once more without this package; rows are those of the file."""
    found = look(published(name), check)
    assert int(found.value) == count and found.passed == (count == 0)
    if rows:
        assert numbers(found.note) == rows


def test_pairs_whose_prompts_differ():
    found = look(published("preference/hh_harmless.jsonl"), "pairs-share-their-prompt")
    assert found.value == 3
    assert all(f"line {n}:" in found.note for n in (504, 783, 785))


def test_published_counts():
    spam = published("classify/sms_spam.tsv")
    assert len(spam.rows) == 2229 and not spam.refused
    found = failing(spam)
    found.pop("no-benchmark-in-the-rows", None)
    assert found == {"prompts-do-not-repeat": 58, "text-is-clean": 136, "prompts-are-no-near-copies": 2}
    assert look(spam, "prompts-do-not-repeat").note.startswith("58 groups, 133 of 2,229 rows. lines 3, 1706: ")
    harmless = look(published("preference/hh_harmless.jsonl"), "length-gives-nothing-away")
    assert harmless.note.startswith("the shorter answer is chosen in 517 of 919 pairs (56.3%)")


def test_published_splits_that_share():
    """Bug: banking77's and openbookqa's shared prompts, which others report too, are passed over."""
    banking = look(published("classify/banking77/train.csv"), "train-and-test-share-no-prompt")
    assert banking.value == 7 and banking.note.startswith(
        "7 of 3,080 rows beside train.csv. test.csv line 556: as train"
    )
    assert look(published("bench/openbookqa/train.tsv"), "train-and-test-share-no-prompt").value == 7
    assert look(published("classify/sst2/train.tsv"), "train-and-test-share-no-prompt").value == 0
