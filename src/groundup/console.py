"""What a person sees: progress bars on a terminal, plain lines elsewhere. Reports go to stdout, progress to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from groundup.errors import UserError

Messages = list[dict[str, str]]

PLAIN_EVERY = 5.0  # seconds between two lines of a stage where there is no terminal


def duration(seconds: float) -> str:
    """3725 -> '1h02m', 95 -> '1m35s', 4.2 -> '4.2s', 200000 -> '2d07h'."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,}d{hours % 24:02d}h"
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class Reporter:
    """Says what goes on: one line a stage's start and end, one bar (or a line now and then) while it works."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet

    def say(self, text: str, style: str = "") -> None:
        if not self.quiet:
            self.console.print(escape(text), style=style)
            sys.stderr.flush()

    def warn(self, text: str) -> None:
        self.console.print(escape(f"warning: {text}"), style="yellow")  # quiet or not: on stderr

    @contextmanager
    def bar(self, stage: str, total: int | None, start: int = 0, unit: str = "") -> Iterator[Bar]:
        """A progress bar for one stage; `total` None = unknown."""
        if not self.live:
            yield Bar(self, stage, total, start, unit)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            task = progress.add_task(stage, total=total, completed=start, note="")
            yield Bar(
                self, stage, total, start, unit, lambda done, note: progress.update(task, completed=done, note=note)
            )


class Bar:
    """Handle of one running bar: `update(done, note)`.

    The rate leaves out what comes before the first update: a step that compiles takes many times the others.
    """

    def __init__(self, reporter: Reporter, stage: str, total: int | None, start: int, unit: str, draw=None) -> None:  # type: ignore[no-untyped-def]
        self.reporter, self.stage, self.total, self.start, self.unit, self.draw = (
            reporter,
            stage,
            total,
            start,
            unit,
            draw,
        )
        self.said = time.monotonic()
        self.first: tuple[int, float] | None = None  # (done, when) of the first update that had something done

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        rest = ""
        if self.first is None and done > self.start:
            self.first = (done, now)
        elif self.total and self.first is not None and self.first[0] < done < self.total:
            rest = f"ETA {duration((now - self.first[1]) / (done - self.first[0]) * (self.total - done))}"
        if self.draw is not None:
            self.draw(done, f"{escape(note)}  {rest}".strip())
        elif now - self.said >= PLAIN_EVERY or done == self.total:
            self.said = now
            of = f"/{self.total}" if self.total else ""
            unit = f" {self.unit}" if self.unit else ""
            self.reporter.say(f"[{self.stage}] {done}{of}{unit}  {note}  {rest}".rstrip())


def talk(name: str, answer: Callable[[Messages, int], Iterator[str]], system: str | None = None) -> None:
    """A conversation on the terminal, until an empty line, Ctrl-D or Ctrl-C at the prompt.

    answer(messages, turn) gives the next answer piece by piece; it may drop messages that no longer fit. A UserError
    of it costs the last message, not the conversation; Ctrl-C while it speaks cuts the answer short.
    """
    start: Messages = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    for turn in count():
        try:
            text = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not text:
            return
        if text == "/reset":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        said = ""
        try:
            pieces = answer(messages, turn)
            print(f"{name}> ", end="", flush=True)
            for piece in pieces:
                said += piece
                print(piece, end="", flush=True)
        except UserError as e:
            messages.pop()
            print(f"({e})", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            pass
        print()
        messages.append({"role": "assistant", "content": said})
