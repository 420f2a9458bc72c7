"""docs/silent-bugs.md is written from the checks: `python tests/verify/test_verify_docs.py` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from groundup.verify import checks  # noqa: F401  (registers them)
from groundup.verify.check import REGISTRY, STAGES
from groundup.verify.explain import as_markdown, linked, symptoms
from groundup.verify.fault import FAULTS
from groundup.verify.healthy import HEALTHY

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "silent-bugs.md"
TITLES = {
    "model": "The model",
    "tokenizer": "Tokenizers",
    "data": "Data",
    "train": "Training",
    "live": "While it trains",
    "chat": "Chat templates",
    "tune": "Tuning and alignment",
    "infer": "Decoding and serving",
    "evaluate": "Evaluation",
    "export": "Export and checkpoints",
}
HEAD = """\
# Silent bugs of training, and how a program sees them

Every bug that [`groundup verify`](verify.md) looks for: what people saw before they knew, how it is measured and why
the bound is where it is, the fix, the threads where people met it, and the bugs that were planted to prove that the
check can fail. `groundup verify --explain ID` prints one of these; `groundup verify TARGET --only ID` looks for it in a
recipe, a run, a checkpoint, a file of rows or your own module.

"""


def page() -> str:
    """The whole page."""
    contents, parts = [], []
    for stage in [stage for stage in TITLES if stage in STAGES]:
        chosen = [one for one in REGISTRY.values() if one.stage == stage]
        title = TITLES[stage]
        anchor = title.lower().replace(" ", "-")
        ids = " · ".join(f"[{one.id}](#{one.id})" for one in chosen)
        contents.append(f"**[{title}](#{anchor})** ({len(chosen)}): {ids}\n")
        parts.append(f"## {title}\n\n" + "\n".join(as_markdown(one) for one in chosen))
    return HEAD + "\n".join(contents) + "\n" + "\n".join(parts).rstrip() + "\n"


def test_the_page_is_what_the_checks_say() -> None:
    """A page that is written by hand says what a check measured last year."""
    assert set(TITLES) == set(STAGES)
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/verify/test_verify_docs.py"


def test_every_check_has_a_symptom_and_a_place_to_read() -> None:
    """The reader has a symptom, not an id."""
    assert set(symptoms()) == set(REGISTRY)
    for one in REGISTRY.values():
        assert len(symptoms()[one.id]) > 20, one.id
        assert one.reference, one.id


def test_the_map_names_every_check_and_no_other() -> None:
    """An id that no longer exists, which --only then refuses; a check that no line of the map leads to."""
    text = (DOCS / "verify.md").read_text(encoding="utf-8")
    rows = [
        line for line in text.split("## The map")[1].split("## Not covered")[0].splitlines() if line.startswith("| ")
    ]
    named = re.findall(r"\[([a-z0-9-]+)\]\(silent-bugs\.md#([a-z0-9-]+)\)", "".join(rows))
    assert all(name == anchor for name, anchor in named)
    assert {name for name, _ in named} == set(REGISTRY)
    assert {name for name in re.findall(r"silent-bugs\.md#([a-z0-9-]+)", text)} == set(REGISTRY)  # the symptoms' too


def test_the_numbers_are_the_registers() -> None:
    """Counts go stale with the first check that is added."""
    text = (DOCS / "verify.md").read_text(encoding="utf-8")
    assert f"There are {len(REGISTRY)} checks" in text
    assert f"plants {len(FAULTS)} bugs" in text
    assert f"runs {len(HEALTHY)} healthy configurations" in text


def test_references_become_links() -> None:
    """A number that is linked to the wrong repository, or a paper's section taken for an issue."""
    trl = "https://github.com/huggingface/trl/issues/"
    assert linked("huggingface/trl issues 976, 1623; arXiv 2408.00118, section 2") == (
        f"huggingface/trl issues [976]({trl}976), [1623]({trl}1623); "
        "[arXiv 2408.00118](https://arxiv.org/abs/2408.00118), section 2"
    )
    assert linked("Press & Wolf 2017, arXiv 1608.05859") == (
        "Press & Wolf 2017, [arXiv 1608.05859](https://arxiv.org/abs/1608.05859)"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
