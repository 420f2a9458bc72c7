"""Tokenizers that write a space as U+2581, or know one token a character: llama.cpp's kind "llama" (SentencePiece BPE).

llama.cpp has no list of merges there: any two neighbours may become one if that is a token, the highest score first.
So scores are the order of the merges, and where the list of merges says something else, that is a difference.
"""

from __future__ import annotations

from typing import Any

from groundup.errors import UserError

SPACE = "\u2581"
NORMAL = 1


def piece_fields(
    content: dict[str, Any], texts: list[str], types: list[int]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """(metadata, differences, notes); `texts` are respelled in place where a token holds a real space."""
    model = content["model"]
    if not model.get("byte_fallback"):
        raise UserError("it has neither bytes nor byte_fallback, and llama.cpp has no form for such a BPE")
    prefix, escaped, differences, notes = _spaces(content)
    if not escaped:  # groundup's `kind: char` keeps real spaces; llama.cpp writes every space of a text as U+2581
        if any(SPACE in text for text in texts):
            raise UserError("it has a token with U+2581, which is what llama.cpp writes for a space")
        for i, kind in enumerate(types):
            if kind == NORMAL:
                texts[i] = texts[i].replace(" ", SPACE)
        notes.append("U+2581 in a text is read as a space, as llama.cpp writes one")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    rank: dict[str, int] = {}
    for n, pair in enumerate(merges):
        rank.setdefault("".join(pair), n)
    if odd := _other_merges(merges, rank, [t for t, kind in zip(texts, types, strict=True) if kind == NORMAL]):
        differences.append(f"llama.cpp would merge otherwise, for example into {odd[0]!r} ({len(odd)} tokens)")
    if merges:
        notes.append("the name of a special token in a text may become that token, as llama.cpp merges up to it")
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [-float(rank.get(text, len(merges))) for text in texts],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return fields, differences, notes


def _other_merges(merges: list[tuple[str, ...]], rank: dict[str, int], texts: list[str]) -> list[str]:
    """Tokens that scores alone would make at other times or from other parts than the list of merges does."""
    parts: dict[str, set[tuple[str, ...]]] = {}
    for pair in merges:
        parts.setdefault("".join(pair), set()).add(pair)
    known = set(texts)
    odd = [
        text
        for text in texts
        if {(text[:n], text[n:]) for n in range(1, len(text)) if text[:n] in known and text[n:] in known}
        != {pair for pair in parts.get(text, set()) if known.issuperset(pair)}
    ]
    order = [rank["".join(pair)] for pair in merges]
    late = ["".join(b) for b, one, two in zip(merges[1:], order, order[1:], strict=False) if two < one]
    return odd + late


def _spaces(content: dict[str, Any]) -> tuple[bool, bool, list[str], list[str]]:
    """(is a space put before a text, are spaces written as U+2581, differences, notes)."""
    normalizer, pre = content.get("normalizer"), content.get("pre_tokenizer")
    steps: list[dict[str, Any]] = []
    if normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if pre is None and not steps:
        return False, False, [], []
    if pre is None:
        kinds = [step["type"] for step in steps]
        if kinds in (["Replace"], ["Prepend", "Replace"]) and steps[-1]["content"] == SPACE:
            return len(kinds) == 2, True, [], []
        return False, True, [f"text is normalised ({', '.join(kinds)}) first, which llama.cpp does not do"], []
    scheme = pre.get("prepend_scheme")
    if pre["type"] == "Metaspace" and not pre.get("split", True) and not steps:
        if scheme == "first":
            return True, True, ["a space is put before a text, but not after a special token as llama.cpp does"], []
        return scheme == "always", True, [], []
    return False, True, [f"text is cut by {pre['type']}, which llama.cpp does not do for this kind"], []
