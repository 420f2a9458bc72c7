"""Checks for bugs that stay silent, and planted faults that prove the checks.

    from groundup.verify import Adapter, assert_verified

    def test_my_model():
        assert_verified(Adapter(model, logits=model))

Light to import: torch comes with the first use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundup.verify.adapter import Adapter

__all__ = ["Adapter", "assert_verified", "verify"]


def verify(
    target: Any,
    only: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    stages: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Run the checks on a target and report: {"checks": [...], "failed": n, "skipped": [...]}.

    target: an Adapter, a torch module, a transformers model, (module, tokenizer), or a string as the command takes it
    (a checkpoint's folder, a file of rows, `package.module:factory`, a recipe's file or name).
    """
    from groundup.verify.opening import as_target, open_or_recipe
    from groundup.verify.run import report, run_checks

    found = open_or_recipe(target) if isinstance(target, str) else as_target(target)
    return report(run_checks(found, only, families, stages))


def assert_verified(
    target: Any,
    only: Iterable[str] | None = None,
    families: Iterable[str] | None = None,
    stages: Iterable[str] | None = None,
    allow: Iterable[str] = (),
) -> dict[str, Any]:
    """As `verify`; AssertionError that names every bug found, its numbers and its remedy. allow: ids let through.

    Nothing looked at is a failure too.
    """
    found = verify(target, only, families, stages)
    allowed = set(allow)
    lines = [describe(c) for c in found["checks"] if not c["passed"] and c["id"] not in allowed]
    if not found["checks"]:
        lines = ["nothing was looked at: no check applies to this target"]
    if lines:
        raise AssertionError("\n".join(lines))
    return found


def describe(check: dict[str, Any]) -> str:
    """A failed check of a report, in words."""
    return (
        f"{check['id']}: {check['bug']} Measured {check['measured']}, bound {check['direction']} {check['bound']} "
        f"({check['note']}). {check['remedy']}"
    )


def __getattr__(name: str) -> Any:
    if name == "Adapter":
        from groundup.verify.adapter import Adapter

        return Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
