"""The documents of builtin:town: deterministic, never repeating, and true to the world."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from groundup.data.town import conversations, document, documents, preferences, problems, the_world
from groundup.data.town.documents import SHARES
from groundup.data.town.facts import LISTS, REVERSED, STATEMENTS
from groundup.data.town.words import ATTRIBUTES, FIRST_NAMES, POOLS, SURNAMES
from groundup.data.town.world import World

WORLD = the_world()
FINGERPRINT = """
import hashlib
from groundup.data.town import *
made = [list(documents(3, 300)), list(conversations(3, 300)), list(preferences(3, 300)), list(problems(3, 300))]
made.append([task.questions(1) for task in TASKS.values()])
print(hashlib.sha256(repr(made).encode()).hexdigest())
"""


def statements() -> dict[str, tuple[str, str, bool]]:
    """Each sentence that could state a fact -> (name, attribute, is it true)."""
    found = {}
    for resident in WORLD.residents:
        for attribute in ATTRIBUTES:
            for template, value in itertools.product(STATEMENTS[attribute] + REVERSED[attribute], POOLS[attribute]):
                sentence = template.format(n=resident.name, v=value)
                found[sentence] = (resident.name, attribute, resident.facts[attribute] == value)
    return found


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def test_world_is_split_and_balanced() -> None:
    """Bug: a split that is empty or drifts, names that clash, or a value so frequent that guessing it pays."""
    assert len({r.name.split()[0] for r in WORLD.residents}) == len(WORLD.residents) == 200
    assert (len(WORLD.taught), len(WORLD.held_out)) == (80, 120)
    for attribute in ATTRIBUTES:
        counts = Counter(r.facts[attribute] for r in WORLD.residents)
        assert set(counts.values()) == {200 // len(POOLS[attribute])}
    assert World(7).residents == WORLD.residents
    assert World(8).residents != WORLD.residents


def test_values_and_names_are_distinct_words() -> None:
    """Bug: a word that is both a name and a value, or a value of two attributes, makes scoring by words wrong."""
    values = [value.lower() for pool in POOLS.values() for value in pool]
    names = [name.lower() for name in FIRST_NAMES + SURNAMES]
    assert len(set(values)) == len(values)
    assert len(set(names)) == len(names) == 260
    assert not set(values) & set(names)


def test_documents_are_a_pure_function_of_seed_and_index() -> None:
    """Bug: state carried from one document to the next, so that resuming at `start` reads something else."""
    whole = list(documents(5, 200))
    assert whole == list(documents(5, 200))
    assert list(documents(5, 50, start=100)) == whole[100:150]
    assert document(5, 123) == whole[123]
    assert list(documents(6, 200)) != whole
    assert next(documents(5))[2] == whole[0][2]


def test_every_stream_repeats_itself() -> None:
    """Bug: the global random generator used somewhere."""
    for stream in (conversations, preferences, problems):
        assert list(stream(4, 200)) == list(stream(4, 200))
        assert list(stream(4, 200)) != list(stream(5, 200))
        assert list(stream(4, 100)) == list(stream(4, 200))[:100]


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_makes_the_same(hash_seed: str) -> None:
    """Bug: hash() or the order of a set reaches the output, which then changes with PYTHONHASHSEED."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    made = [
        subprocess.run([sys.executable, "-c", FINGERPRINT], env=env, capture_output=True, text=True, check=True).stdout
        for env in (environment, os.environ | {"PYTHONHASHSEED": "7"})
    ]
    assert made[0] == made[1] and len(made[0].strip()) == 64


def test_no_document_repeats_in_50k() -> None:
    """Bug: a kind with too few variations, whose copies would land in both training and validation."""
    seen = Counter(hashlib.sha256(text.encode()).digest() for _, _, text in documents(1, 50_000))
    assert len(seen) == 50_000


def test_kinds_have_their_shares(town_documents: list[tuple[str, str, str]]) -> None:
    """Bug: a share that nothing reads."""
    counts = Counter(kind for _, kind, _ in town_documents)
    assert sum(SHARES.values()) == pytest.approx(1.0)
    for kind, share in SHARES.items():
        assert counts[kind] / len(town_documents) == pytest.approx(share, abs=0.015)


def test_encyclopaedia_says_only_what_is_true(town_documents: list[tuple[str, str, str]]) -> None:
    """Bug: a template given the wrong resident or attribute. Every sentence must be accounted for."""
    known = statements()
    lists = {
        attribute: [
            re.compile(re.escape(t).replace(r"\{n\}", "(?P<n>.+)").replace(r"\{v\}", "(?P<v>.+)"))
            for t in LISTS[attribute]
        ]
        for attribute in ATTRIBUTES
    }
    facts = in_lists = 0
    for _, kind, text in town_documents:
        for sentence in sentences(text) if kind == "encyclopaedia" else []:
            if sentence in known:
                assert known[sentence][2], sentence
                facts += 1
                continue
            matches = [(a, m) for a in ATTRIBUTES for r in lists[a] if (m := r.fullmatch(sentence))]
            assert matches, sentence
            attribute, match = matches[0]
            for name in re.split(", | and ", match["n"]):
                assert WORLD.by_name[name].facts[attribute] == match["v"], sentence
                in_lists += 1
    assert facts > 40_000 and in_lists > 3_000


def test_other_kinds_state_facts_of_taught_residents_only(town_documents: list[tuple[str, str, str]]) -> None:
    """Bug: a held-out fact told outside the encyclopaedia, where it would come close to a question and its answer."""
    known = statements()
    said = 0
    for _, kind, text in town_documents:
        if kind == "encyclopaedia":
            continue
        quoted = [part.rstrip(",") + "." for part in re.findall(r'"([^"]*)"', text)]
        for sentence in sentences(text) + quoted:
            if sentence in known:
                name, _, true = known[sentence]
                assert true and WORLD.by_name[name].taught, sentence
                said += 1
    assert said > 1_000


def test_every_fact_is_read_often_and_in_many_wordings(town_documents: list[tuple[str, str, str]]) -> None:
    """Bug: a resident or attribute that the encyclopaedia forgets, whose questions nobody could answer."""
    known = statements()
    wordings: dict[tuple[str, str], set[str]] = {}
    for _, _, text in town_documents:
        for sentence in sentences(text):
            if sentence in known:
                name, attribute, _ = known[sentence]
                wordings.setdefault((name, attribute), set()).add(sentence)
    assert len(wordings) == 1000
    assert min(len(s) for s in wordings.values()) >= 8
    assert all(len(STATEMENTS[a]) >= 10 and len(REVERSED[a]) >= 3 for a in ATTRIBUTES)


def test_the_vocabulary_is_small(town_training_texts: list[str]) -> None:
    """Bug: a slot left unfilled, or words that creep in until a small model cannot learn them."""
    words = {word for text in town_training_texts for word in re.findall(r"[a-z']+", text.lower())}
    assert len(words) < 1200
    assert not any("{" in text or "}" in text for text in town_training_texts)
