"""SentencePiece's model files, read without the library: a protocol buffer of pieces with scores, and two specs.

What is made of one is a tokenizer of the `tokenizers` library that encodes as SentencePiece does: bytes stand in for
unknown characters where the model has them, and normalisation is the file's own table.
The format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from groundup.errors import UserError

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


def read(path: Path, guarded: bool = False) -> Backend:
    """The tokenizer of a .model file. Errors: UserError for a damaged file, or a model by words or characters.

    guarded: control pieces cannot be found in text, as in SentencePiece itself; the library would find "<s>", having a
    piece of that name. Only for encoding: their names are others.
    """
    try:
        whole: dict[int, list[Any]] = {}
        for number, value in fields(path.read_bytes()):
            whole.setdefault(number, []).append(value)
        pieces = [_piece(n, dict(fields(raw)), guarded) for n, raw in enumerate(whole[1])]
        trainer, normal = dict(fields(whole[2][0])), dict(fields(whole[3][0]))
    except (OSError, KeyError, IndexError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no SentencePiece model, or damaged ({error!r})") from error
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise UserError(f"{path}: a SentencePiece model by words or characters is not read")
    bytewise = any(one == BYTE for _, _, one in pieces)
    backend = Backend(_unigram(pieces, bytewise) if kind == UNIGRAM else _bpe(pieces, bytewise))
    backend.normalizer = normalizers.Sequence(_steps(normal))
    tail = [decoders.Strip(content=" ", left=1, right=0)] if normal.get(3, 1) else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t, _, one in pieces if one == USER_DEFINED])
    if not guarded:
        named = [text for text, _, one in pieces if one in (UNKNOWN, CONTROL)]
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in named])
    return backend


def _piece(number: int, raw: dict[int, Any], guarded: bool) -> tuple[str, float, int]:
    kind = raw.get(3, NORMAL)
    text = f"\x00{number}\x00" if guarded and kind in (UNKNOWN, CONTROL, UNUSED) else raw[1].decode()
    return text, raw.get(2, 0.0), kind


def _unigram(pieces: list[tuple[str, float, int]], bytewise: bool) -> models.Unigram:
    unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN)
    return models.Unigram([(text, score) for text, score, _ in pieces], unk_id=unknown, byte_fallback=bytewise)


def _bpe(pieces: list[tuple[str, float, int]], bytewise: bool) -> models.BPE:
    """Merges from the pieces: any two ordinary pieces that make an ordinary one, the best-scored first.

    SentencePiece takes the leftmost of equally good merges, the library the one that was listed first: runs of one
    character that are longer than the longest piece may be cut at other places.
    """
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    ordinary = {text for text, _, kind in pieces if kind == NORMAL}
    found = []
    for text, score, kind in pieces:
        if kind == NORMAL:
            cuts = [(text[:n], text[n:]) for n in range(1, len(text))]
            whole = [(vocab[a], vocab[b], (a, b)) for a, b in cuts if a in ordinary and b in ordinary]
            found += [(-score, left, right, pair) for left, right, pair in whole]
    merges = [pair for _, _, _, pair in sorted(found)]
    unknown = next(text for text, _, kind in pieces if kind == UNKNOWN)
    return models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytewise)


def _steps(normal: dict[int, Any]) -> list[normalizers.Normalizer]:
    """NormalizerSpec: 2 the table of replacements, 3 add_dummy_prefix, 4 remove_extra_whitespaces."""
    steps: list[normalizers.Normalizer] = []
    if normal.get(2):
        steps.append(normalizers.Precompiled(normal[2]))
    if normal.get(4, 1):
        # Spaces alone: Strip would take tabs and line ends too.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if normal.get(3, 1):
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer: int, float (32 bits), or the bytes of what is nested."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError("it ends in the middle")
            yield key >> 3, data[at : at + size]
            at += size
        elif key & 7 == 5:
            yield key >> 3, struct.unpack("<f", data[at : at + 4])[0]
            at += 4
        elif key & 7 == 1:
            at += 8
        elif key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        else:
            raise ValueError("no protocol buffer")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
