"""What a planted fault is: real code made wrong for a while, and the checks that must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from groundup.verify import healthy
from groundup.verify.target import Target


@dataclass(frozen=True)
class Fault:
    """One bug to plant. `with fault.plant(): ...` and everything built and run inside is wrong in this one way.

    caught_by: ids of the checks that must fail on it.  needs: recipe sections, {section: {key: value}}, without
    which the faulty code is not reached.  on: builds another target than a recipe (a transformers model, a file of
    rows), with the fault in.
    """

    id: str
    bug: str
    caught_by: tuple[str, ...]
    plant: Callable[[], AbstractContextManager[None]]
    needs: dict[str, dict[str, Any]] = field(default_factory=dict)
    on: Callable[[], Target] | None = None

    def target(self) -> Target:
        """What to look at while the fault is planted."""
        return healthy.subject(self.needs) if self.on is None else self.on()


FAULTS: dict[str, Fault] = {}

Planter = Callable[[], Iterator[None]]


def fault(
    id: str, *caught_by: str, on: Callable[[], Target] | None = None, **needs: dict[str, Any]
) -> Callable[[Planter], Planter]:
    """Register a generator that plants a fault, yields, and takes it out again; its docstring is the bug."""

    def register(planter: Planter) -> Planter:
        if id in FAULTS:
            raise ValueError(f"two faults are called {id}")
        if not planter.__doc__ or not caught_by:
            raise ValueError(f"fault {id}: say what the bug is, and which check must catch it")
        FAULTS[id] = Fault(id, planter.__doc__.strip(), caught_by, contextmanager(planter), needs, on)
        return planter

    return register


@contextmanager
def swapped(owner: Any, **attributes: Any) -> Iterator[None]:
    """Attributes of a module or class replaced inside, and put back afterwards."""
    before = {name: vars(owner)[name] if name in vars(owner) else getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)
