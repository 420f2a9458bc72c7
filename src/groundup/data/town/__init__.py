"""builtin:town, a little world that groundup makes itself: text to read, conversations, pairs, problems and tests.

Everything is a pure function of a seed. What the tests ask (residents, operand pairs, requests, topics) is split off
by a fixed hash, independent of the seed, so text made with any seed can be tested with questions made with any other.
"""

from groundup.data.town.conversations import conversations
from groundup.data.town.documents import document, documents
from groundup.data.town.preferences import preferences
from groundup.data.town.problems import problems, reward
from groundup.data.town.tasks import TASKS, Question, TownTask
from groundup.data.town.world import WORLD_SEED, Resident, World, the_world

__all__ = [
    "TASKS",
    "WORLD_SEED",
    "Question",
    "Resident",
    "TownTask",
    "World",
    "conversations",
    "document",
    "documents",
    "preferences",
    "problems",
    "reward",
    "the_world",
]
