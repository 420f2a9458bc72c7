"""pytest: `pytest --groundup-verify TARGET` makes one test item of each check that applies to the target.

Nothing is imported or collected unless the option is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from groundup.verify.target import Target


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("groundup")
    group.addoption(
        "--groundup-verify",
        action="append",
        default=[],
        metavar="TARGET",
        help="verify a recipe, a checkpoint's folder, a file of rows, or package.module:factory; one item a check",
    )


class CheckItem(pytest.Item):
    """One check on one target."""

    def __init__(self, *, target: Target, check: str, **more: Any) -> None:
        super().__init__(**more)
        self.target, self.check = target, check

    def runtest(self) -> None:
        from groundup.verify import describe
        from groundup.verify.run import report, run_checks

        found = report(run_checks(self.target, only=[self.check]))
        if found["skipped"]:
            pytest.skip(found["skipped"][0]["reason"])
        if found["failed"]:
            raise Failed(describe(found["checks"][0]))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, Failed) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        return self.path, None, self.name


class Failed(Exception):
    """A check that failed; shown without a traceback, which would be of the plugin."""


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen among the files' tests
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    for given in config.getoption("--groundup-verify"):
        from groundup.errors import UserError
        from groundup.verify.opening import open_or_recipe
        from groundup.verify.run import applicable

        try:
            target = open_or_recipe(given)
        except UserError as error:
            raise pytest.UsageError(str(error)) from error
        items.extend(
            CheckItem.from_parent(session, name=f"{given}::{check.id}", target=target, check=check.id)
            for check in applicable(target)
        )
