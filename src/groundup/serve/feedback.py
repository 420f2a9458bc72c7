"""Thumbs up and down on answers, kept in SQLite, and given back as rows that SFT and DPO can train on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from groundup.errors import UserError, missing_extra

try:
    from sqlalchemy import JSON, DateTime, Text, create_engine, event, func, select
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
except ImportError as error:
    raise missing_extra("serve", "sqlalchemy") from error

Layout = Literal["raw", "sft", "preference"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


class Base(DeclarativeBase):
    pass


class Feedback(Base):
    """One rated answer. `messages` is the conversation before the answer, OpenAI style."""

    __tablename__ = "feedback"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(DateTime)  # UTC: SQLite keeps no zone
    model: Mapped[str] = mapped_column(Text, index=True)
    messages: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    answer: Mapped[str] = mapped_column(Text)
    rating: Mapped[int]  # +1 or -1
    comment: Mapped[str | None] = mapped_column(Text)

    def row(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "time": self.time.replace(tzinfo=UTC).isoformat(),
            "model": self.model,
            "messages": self.messages,
            "answer": self.answer,
            "rating": self.rating,
            "comment": self.comment,
        }


class FeedbackStore:
    """A SQLite file of rated answers; safe to call from many threads (each call has a session of its own).

    Raises UserError when the file cannot be opened or is not a feedback database.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # timeout: seconds a writer waits for another writer's lock before it gives up
            self._engine = create_engine(f"sqlite:///{self.path}", connect_args={"timeout": 30})
            event.listen(self._engine, "connect", _write_ahead)
            Base.metadata.create_all(self._engine)
            self.counts()  # an older or foreign table of the same name fails here, not at the first thumb
        except (OSError, SQLAlchemyError) as error:
            raise UserError(
                f"{self.path}: cannot be used as the feedback database ({_reason(error)}); "
                "move it away, or name another file"
            ) from error

    def add(
        self,
        model: str,
        messages: list[dict[str, Any]],
        answer: str,
        rating: int,
        comment: str | None = None,
        replaces: int | None = None,
    ) -> int:
        """Record one rating (+1 or -1) and return its id.

        `replaces` is the id an earlier call returned for the same answer: a changed mind overwrites that row,
        so that an answer never counts both ways. An id that is gone, or of another model, adds a new row.
        """
        if rating not in (1, -1):
            raise ValueError(f"rating must be +1 or -1, not {rating}")
        with Session(self._engine) as session, session.begin():
            row = session.get(Feedback, replaces) if replaces is not None else None
            if row is None or (row.model, row.answer) != (model, answer):
                row = Feedback(model=model, messages=messages, answer=answer)
                session.add(row)
            row.time = datetime.now(UTC).replace(tzinfo=None)
            row.rating = rating
            row.comment = comment
            session.flush()
            return row.id

    def counts(self) -> dict[str, dict[str, int]]:
        """{model: {"up": n, "down": n}}, models in alphabetical order."""
        query = select(Feedback.model, Feedback.rating, func.count()).group_by(Feedback.model, Feedback.rating)
        found: dict[str, dict[str, int]] = {}
        with Session(self._engine) as session:
            for model, rating, n in session.execute(query.order_by(Feedback.model)):
                found.setdefault(model, {"up": 0, "down": 0})["up" if rating > 0 else "down"] = n
        return found

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, oldest first."""
        with Session(self._engine) as session:
            for row in session.scalars(select(Feedback).order_by(Feedback.id)):
                yield row.row()

    def export(self, layout: Layout = "raw") -> Iterator[dict[str, Any]]:
        """Rows to train on.

        raw         every column, one rating a row
        sft         answers with a thumb up, as {"messages": [..., assistant]}
        preference  {"prompt": messages, "chosen": answer, "rejected": answer} for every pair of answers to the
                    same conversation that were rated up and down (by whatever models)
        """
        if layout == "raw":
            yield from self.rows()
        elif layout == "sft":
            for row in self.rows():
                if row["rating"] > 0:
                    answer = {"role": "assistant", "content": row["answer"]}
                    yield {"messages": [*row["messages"], answer]}
        else:
            yield from self._pairs()

    def _pairs(self) -> Iterator[dict[str, Any]]:
        rated: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # dicts: unique, in order
        for row in self.rows():
            up, down = rated.setdefault(json.dumps(row["messages"], sort_keys=True), ({}, {}))
            (up if row["rating"] > 0 else down)[row["answer"]] = None
        for messages, (up, down) in rated.items():
            for chosen in up:
                for rejected in down:
                    if chosen != rejected:  # two people disagreed on the same text: no preference
                        yield {"prompt": json.loads(messages), "chosen": chosen, "rejected": rejected}

    def close(self) -> None:
        self._engine.dispose()


def _write_ahead(connection: Any, _record: Any) -> None:
    """Readers do not wait for a writer: the export can run while thumbs come in."""
    connection.execute("PRAGMA journal_mode=WAL")


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
