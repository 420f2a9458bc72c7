"""Rows as people publish them."""

import json
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.recipe.schema import ChatSource, SftSource
from groundup.tune.formats import conversations, pairs, to_messages, to_pair, to_problem, verifiable
from groundup.tune.rewards import reward, stated_number

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
        conversations([SftSource(path=str(path))], 0, tmp_path)
    assert all(f"row {n}" in str(e.value) for n in (2, 3, 4))


def test_town_gives_all_three_kinds():
    """Bug: a builtin that is accepted by the recipe and read by nothing."""
    given = {"builtin": "town", "max_documents": 20}
    assert len(conversations([SftSource(**given)], 0, Path())) == 20
    assert len(pairs([ChatSource(**given)], 0, Path())) == len(verifiable([ChatSource(**given)], 0, Path())) == 20


def test_python_has_no_conversations():
    """Bug: source code taken for conversations."""
    with pytest.raises(UserError, match="no conversations"):
        conversations([SftSource(builtin="python")], 0, Path())


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


def test_stated_number_reads_signs_and_decimals():
    """Bug: -3 read as 3, 2.5 read as 5, 5-3 read as ending in -3."""
    assert stated_number("so it is -3") == -3 and stated_number("about 2.5 km") == 2.5
    assert stated_number("5-3") is None and stated_number("5-3 = 2") == 2


def test_echo_and_guesses_earn_nothing():
    """Bug: the question names the answer, and repeating it is paid."""
    larger = to_problem({"prompt": "Which is larger, 3 or 7?", "answer": "7"})
    assert reward(larger, "7 is larger.") == 1.0
    assert reward(larger, "Which is larger, 3 or 7?") == 0.0
    assert reward(larger, "1 2 3 4 5 6 7") == 0.0


@pytest.mark.parametrize("convert, row", [
    (to_messages, {"messages": [{"role": "human", "content": "Hi"}, ANSWER]}),
    (to_pair, {"prompt": [{"role": "human", "content": "Hi"}], "chosen": "a", "rejected": "b"}),
    (to_problem, {"prompt": [{"role": "human", "content": "Hi"}], "answer": "1"}),
])  # fmt: skip
def test_unknown_roles_are_refused_with_the_row(convert, row):
    """Bug: a role that no template knows is found after hours of pretraining."""
    with pytest.raises(ValueError, match="human"):
        convert(row)


def test_town_rewards_are_sane():
    """Bug: the echo of a question earns the reward."""
    for problem in verifiable([ChatSource(builtin="town", max_documents=50)], 0, Path()):
        assert reward(problem, problem.answer) == 1.0
        assert reward(problem, "") == 0.0
        assert reward(problem, problem.prompt[-1]["content"]) == 0.0
