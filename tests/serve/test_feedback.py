from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.serve.feedback import FeedbackStore

ASKED = [{"role": "user", "content": "Where does Anna live? 日本"}]


def test_a_row_comes_back_as_it_went_in(store: FeedbackStore) -> None:
    """Bug: a column that is dropped, or text that SQLite gives back changed."""
    kept = store.add("sft", ASKED, "In Oldbrook.\n<b>", 1, "good")
    (row,) = store.rows()
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "id": kept, "model": "sft", "messages": ASKED, "answer": "In Oldbrook.\n<b>", "rating": 1, "comment": "good",
    }  # fmt: skip


def test_it_is_on_disk_and_opens_again(store: FeedbackStore) -> None:
    """Bug: rows that live in a session and never reach the file; a second start that wipes the table."""
    store.add("sft", ASKED, "yes", 1)
    store.close()
    again = FeedbackStore(store.path)
    again.add("sft", ASKED, "no", -1)
    assert again.counts() == {"sft": {"up": 1, "down": 1}}
    with sqlite3.connect(store.path) as plain:
        assert plain.execute("select rating from feedback order by id").fetchall() == [(1,), (-1,)]
    again.close()


def test_a_changed_mind_replaces_its_own_row_only(store: FeedbackStore) -> None:
    """Bug: an answer that counts up and down; an id of someone else's row that overwrites it."""
    first = store.add("sft", ASKED, "yes", 1)
    assert store.add("sft", ASKED, "yes", -1, replaces=first) == first
    assert store.counts() == {"sft": {"up": 0, "down": 1}}
    assert store.add("sft", ASKED, "another answer", 1, replaces=first) != first
    assert store.add("dpo", ASKED, "yes", 1, replaces=9999) != first
    assert store.counts() == {"dpo": {"up": 1, "down": 0}, "sft": {"up": 1, "down": 1}}


def test_exports_are_rows_that_sft_and_dpo_read(store: FeedbackStore) -> None:
    """Bug: thumbs down taught as good answers; pairs across questions; a text preferred over itself."""
    other = [{"role": "user", "content": "And her brother?"}]
    for messages, answer, rating in [
        (ASKED, "right", 1), (ASKED, "wrong", -1), (ASKED, "also right", 1), (ASKED, "disputed", 1),
        (ASKED, "disputed", -1), (other, "down only", -1),
    ]:  # fmt: skip
        store.add("sft", messages, answer, rating)
    sft = list(store.export("sft"))
    assert [row["messages"][-1]["content"] for row in sft] == ["right", "also right", "disputed"]
    assert all(row["messages"][:-1] == ASKED and row["messages"][-1]["role"] == "assistant" for row in sft)
    pairs = list(store.export("preference"))
    assert all(pair["prompt"] == ASKED for pair in pairs)
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {
        ("right", "wrong"), ("right", "disputed"), ("also right", "wrong"), ("also right", "disputed"),
        ("disputed", "wrong"),
    }  # fmt: skip


def test_many_threads_lose_no_row(store: FeedbackStore) -> None:
    """Bug: "database is locked", or one connection shared by threads."""
    failed: list[Exception] = []

    def add(n: int) -> None:
        try:
            for i in range(10):
                store.add("sft", ASKED, f"{n}.{i}", 1)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len({row["answer"] for row in store.rows()}) == 80


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    """Bug: a stack trace at start, or worse, at the first thumb."""
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    with pytest.raises(UserError, match=r"notes\.txt.*name another file"):
        FeedbackStore(tmp_path / "notes.txt")
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as plain:
        plain.execute("create table feedback (something text)")
    with pytest.raises(UserError, match="foreign"):
        FeedbackStore(foreign)
