"""Rows as people publish them."""

import json
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.recipe.schema import ChatSource
from groundup.tune.formats import conversations, pairs, to_messages, to_pair, to_problem, verifiable
from groundup.tune.rewards import last_number, reward

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [USER], "completion": "Hello"},
        {"text": "### Human: Hi ### Assistant: Hello"},
        {"question": "Hi", "answer": "Hello"},
    ],
)
def test_every_format_gives_the_same_conversation(row):
    """Bug: one format keeps a marker, a space or an empty input that the others do not."""
    assert to_messages(row) == [USER, ANSWER]


def test_alpaca_input_and_system_are_kept():
    """Bug: the input field is dropped and the model is asked about nothing."""
    made = to_messages({"instruction": "Translate.", "input": "Haus", "output": "house", "system": "Be brief."})
    assert made[0] == {"role": "system", "content": "Be brief."}
    assert made[1]["content"] == "Translate.\n\nHaus"


def test_several_human_turns():
    """Bug: only the first turn of a long conversation is read."""
    made = to_messages({"text": "### Human: a ### Assistant: b### Human: c ### Assistant: d"})
    assert [m["content"] for m in made] == ["a", "b", "c", "d"]


def test_a_conversation_that_ends_with_the_user_is_refused():
    """Bug: nothing to score, or the user's words scored."""
    with pytest.raises(ValueError, match="does not end with an answer"):
        to_messages({"messages": [ANSWER, USER]})


def test_preference_and_problem_rows():
    """Bug: chosen and rejected swapped, or GSM8K's reasoning taken for the answer."""
    pair = to_pair({"instruction": "Hi", "chosen": "good", "rejected": "bad", "output": "bad"})
    assert (pair.chosen, pair.rejected, pair.prompt) == ("good", "bad", [USER])
    assert to_problem({"question": "q", "answer": "2+2=<<2+2=4>>4\n#### 1,004"}).answer == "1004"


def test_all_bad_rows_are_listed(tmp_path):
    """Bug: the first bad row is reported, mended, and then the second one."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}, {"other": 1}, {"prompt": 3, "completion": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as e:
        conversations([ChatSource(path=str(path))], 0, tmp_path)
    assert all(f"row {n}" in str(e.value) for n in (2, 3, 4))


def test_town_gives_all_three_kinds():
    """Bug: a builtin that is accepted by the recipe and read by nothing."""
    source = [ChatSource(builtin="town", max_documents=20)]
    assert (
        len(conversations(source, 0, Path()))
        == len(pairs(source, 0, Path()))
        == len(verifiable(source, 0, Path()))
        == 20
    )


def test_python_has_no_conversations():
    """Bug: source code taken for conversations."""
    with pytest.raises(UserError, match="no conversations"):
        conversations([ChatSource(builtin="python")], 0, Path())


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("It is 12.", 1.0),
        ("5 + 7 = 12", 1.0),
        ("#### 12", 1.0),
        ("", 0.0),
        ("no idea", 0.0),
        ("12 or 13", 0.0),
        ("1,2", 1.0),
    ],
)
def test_number_reward(answer, expected):
    """Bug: an empty answer or a list of guesses is rewarded."""
    assert reward(to_problem({"prompt": "5 + 7?", "answer": "12"}), answer) == expected


def test_last_number_reads_signs_and_decimals():
    """Bug: -3 read as 3, 2.5 read as 5."""
    assert last_number("so it is -3") == -3 and last_number("about 2.5 km") == 2.5


def test_town_rewards_are_sane():
    """Bug: the echo of a question earns the reward."""
    for problem in verifiable([ChatSource(builtin="town", max_documents=50)], 0, Path()):
        assert reward(problem, problem.answer) == 1.0
        assert reward(problem, "") == 0.0
        assert reward(problem, problem.prompt[-1]["content"]) == 0.0
