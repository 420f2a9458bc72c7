"""Reading a config.json: what it says, what its architecture takes for keys left out, and what is wrong with it."""

from __future__ import annotations

from typing import Any


class Keys:
    """The keys of one config.json, with defaults. Problems are collected, so that all can be said at once."""

    def __init__(self, content: dict[str, Any], defaults: dict[str, Any]) -> None:
        self.content, self.defaults = content, defaults
        self.found: list[str] = []

    def get(self, *names: str) -> Any:
        """The value of the first of these names that is there, else the architecture's default (None without one)."""
        for name in names:
            if name in self.content:
                return self.content[name]
        return next((self.defaults[name] for name in names if name in self.defaults), None)

    def whole(self, *names: str) -> int:
        """A whole number of at least 1; 1 in its place when there is none."""
        value = self.get(*names)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        missing = value is None and not any(name in self.content for name in names)
        self.found.append(
            f"{names[0]} is missing" if missing else f"{names[0]} must be a whole number of at least 1 (got {value!r})"
        )
        return 1

    def number(self, *names: str) -> float:
        """A number; 1.0 in its place when there is none."""
        value = self.get(*names)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        self.found.append(
            f"{names[0]} must be a number (got {value!r})" if value is not None else f"{names[0]} is missing"
        )
        return 1.0

    def flag(self, name: str) -> bool:
        """True or false; False in its place when it is neither."""
        value = self.get(name)
        if not isinstance(value, bool):
            self.found.append(f"{name} must be true or false (got {value!r})")
        return value is True

    def inside(self, name: str, content: dict[str, Any]) -> Keys:
        """Keys of an object inside this one; its problems come to the same list, under its name."""
        part = Keys(content, {})
        part.found = _Named(self.found, name)
        return part


class _Named(list[str]):
    """A list that passes everything on to another, under a name."""

    def __init__(self, target: list[str], name: str) -> None:
        super().__init__()
        self.target, self.name = target, name

    def append(self, problem: str) -> None:
        self.target.append(f"{self.name}.{problem}")
