"""Text that several tests read; made once."""

from __future__ import annotations

from typing import Any

import pytest

from groundup.data.town import conversations, documents, preferences, problems

Text = tuple[str, str, str]


@pytest.fixture(scope="session")
def town_documents() -> list[Text]:
    return list(documents(0, 20_000))


@pytest.fixture(scope="session")
def town_conversations() -> list[dict[str, Any]]:
    return list(conversations(0, 20_000))


@pytest.fixture(scope="session")
def town_preferences() -> list[dict[str, Any]]:
    return list(preferences(0, 20_000))


@pytest.fixture(scope="session")
def town_problems() -> list[dict[str, Any]]:
    return list(problems(0, 20_000))


@pytest.fixture(scope="session")
def town_training_texts(
    town_documents: list[Text],
    town_conversations: list[dict[str, Any]],
    town_preferences: list[dict[str, Any]],
    town_problems: list[dict[str, Any]],
) -> list[str]:
    """Every string that any stage of training can see."""
    texts = [text for _, _, text in town_documents]
    for conversation in town_conversations:
        texts += [message["content"] for message in conversation["messages"]]
    for pair in town_preferences:
        texts += [pair["prompt"][-1]["content"], pair["chosen"], pair["rejected"]]
    texts += [problem["prompt"][-1]["content"] for problem in town_problems]
    return texts
