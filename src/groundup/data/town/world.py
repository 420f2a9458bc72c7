"""Who lives in the town. A resident is `taught` (SFT asks about them) or `held_out` (only the encyclopaedia does)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from groundup.data.town.draw import rng, share
from groundup.data.town.words import ATTRIBUTES, FIRST_NAMES, POOLS, SURNAMES

WORLD_SEED = 7
N_RESIDENTS = len(FIRST_NAMES)  # 200: a first name belongs to one resident
TAUGHT_SHARE = 0.4


@dataclass(frozen=True)
class Resident:
    """One person: a unique first name and a surname, and one value for each of the five attributes."""

    name: str
    facts: dict[str, str]
    taught: bool


class World:
    """All residents. Every value of an attribute is held by equally many of them, so guessing one is 1/pool."""

    def __init__(self, seed: int = WORLD_SEED) -> None:
        draw = rng("world", seed)
        names = [f"{first} {draw.choice(SURNAMES)}" for first in FIRST_NAMES]
        columns: dict[str, list[str]] = {}
        for attribute in ATTRIBUTES:
            pool = POOLS[attribute]
            column = [pool[i % len(pool)] for i in range(N_RESIDENTS)]
            draw.shuffle(column)
            columns[attribute] = column
        by_coin = sorted(names, key=lambda name: share("taught", seed, name))
        taught = set(by_coin[: round(TAUGHT_SHARE * N_RESIDENTS)])
        self.seed = seed
        self.residents = [
            Resident(name, {a: columns[a][i] for a in ATTRIBUTES}, name in taught) for i, name in enumerate(names)
        ]
        self.taught = [resident for resident in self.residents if resident.taught]
        self.held_out = [resident for resident in self.residents if not resident.taught]
        self.by_name = {resident.name: resident for resident in self.residents}
        self.holders: dict[tuple[str, str], list[Resident]] = {}
        for resident in self.residents:
            for attribute in ATTRIBUTES:
                self.holders.setdefault((attribute, resident.facts[attribute]), []).append(resident)


@lru_cache(maxsize=4)
def the_world(seed: int = WORLD_SEED) -> World:
    """The town everybody shares: documents, conversations and questions must speak of the same one."""
    return World(seed)
