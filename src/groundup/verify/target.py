"""What can be verified: anything that shows one or more faces to the checks.

face         what a check is handed        who has it
recipe       subject.Subject               a recipe, a run
model        adapter.Adapter               a recipe (its micro model), a checkpoint, somebody's own module
tokenizer    outside.OutsideTokenizer      a checkpoint, a tokenizer folder, somebody's own module
checkpoint   outside.Checkpoint            a Hugging Face folder
dataset      rows.Rows                     a file of rows, a recipe's tuning sources
vitals       train.vitals.Vitals           a training stage at some of its steps
export       handed.Export                 a folder that `groundup export` has just written
gguf         handed.Export                 a GGUF file likewise
"""

from __future__ import annotations

from typing import Any, Protocol

from groundup.verify.check import Face


class Target(Protocol):
    """Something under inspection."""

    @property
    def kind(self) -> str:
        """What it is called in messages: a recipe, a model, ..."""

    def face(self, name: Face) -> Any | None:
        """What a check that looks at `name` is handed; None where the target has no such face."""
