"""Shards. Each test names the bug it would catch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup.data.shard import HEADER_BYTES, Shard, ShardSet, write_shard
from groundup.errors import UserError

MakeShard = Callable[..., Shard]


def test_tokens_and_bounds_come_back(make_shard: MakeShard) -> None:
    """Bug: tokens out are not tokens in, or a document's bounds are off by one."""
    shard = make_shard([3, 1, 5])
    assert shard.tokens.tolist() == [0, 2, 3, 4, 1, 0, 5, 1, 0, 6, 7, 8, 9, 10, 1]
    assert shard.bounds.tolist() == [0, 5, 8]
    assert [shard.document(i).tolist() for i in range(3)] == [[0, 2, 3, 4, 1], [0, 5, 1], [0, 6, 7, 8, 9, 10, 1]]
    assert shard.document_bytes.tolist() == [30, 10, 50]
    assert (len(shard), shard.n_documents, shard.text_bytes) == (15, 3, 90)
    shard.verify()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_dtype_holds_the_vocabulary(make_shard: MakeShard, tmp_path: Path, vocab_size: int, dtype: str) -> None:
    """Bug: uint16 wraps at 65,536, and the highest ids become others without a word."""
    with write_shard(tmp_path / "a.bin", vocab_size=vocab_size, tokenizer_hash="t") as writer:
        writer.add([0, vocab_size - 1, 1], "a", 1)
    shard = Shard(tmp_path / "a.bin")
    assert shard.header["dtype"] == dtype
    assert shard.tokens.tolist() == [0, vocab_size - 1, 1]


@pytest.mark.parametrize("bad", [100, 65_536, -1])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path, bad: int) -> None:
    """Bug: a stray -100 or a foreign id is cast into some other word."""
    made = write_shard(tmp_path / "a.bin", vocab_size=100, tokenizer_hash="t")
    with pytest.raises(ValueError, match="vocabulary ends at 99"), made as writer:
        writer.add([0, bad, 1], "a", 1)
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_is_refused(make_shard: MakeShard) -> None:
    """Bug: shards of an older tokenizer are read with a new one: every id means another word."""
    shard = make_shard([3])
    with pytest.raises(UserError, match="another tokenizer"):
        Shard(shard.path, "u" * 64)


@pytest.mark.parametrize("where", ["first token", "starts", "last byte"])
def test_a_flipped_bit_in_the_payload(make_shard: MakeShard, where: str) -> None:
    """Bug: a corrupted shard is trained on; or the checksum leaves out the document bounds."""
    path = make_shard([300, 200]).path
    header = Shard(path).header
    size = path.stat().st_size
    place = {
        "first token": HEADER_BYTES,
        "starts": HEADER_BYTES + header["sections"]["starts"][0],
        "last byte": size - 1,
    }[where]
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(UserError, match=r"corrupted.*delete the data stage's folder"):
        Shard(path).verify()


@pytest.mark.parametrize("place", [3, 12, 20, 60, 200])
def test_a_flipped_bit_in_the_header(make_shard: MakeShard, place: int) -> None:
    """Bug: a wrong n_tokens or dtype in the header is believed (magic, length, hash and JSON are each hit)."""
    path = make_shard([300]).path
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="corrupted"):
        Shard(path)


def test_a_cut_and_a_foreign_and_a_missing_file(make_shard: MakeShard, tmp_path: Path) -> None:
    """Bug: a half copied shard opens, and its last documents are whatever the disk gives."""
    path = make_shard([300]).path
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match="bytes where its header says"):
        Shard(path)
    os.truncate(path, 100)
    with pytest.raises(UserError, match="corrupted"):
        Shard(path)
    path.write_bytes(np.zeros(10_000, np.uint16).tobytes())
    with pytest.raises(UserError, match="not a groundup shard"):
        Shard(path)
    with pytest.raises(UserError, match="no such shard"):
        ShardSet(tmp_path / "nowhere")


def test_a_document_is_named_from_any_token_range(make_shard: MakeShard) -> None:
    """Bug: the guard names the neighbour of the document that made the loss spike."""
    shard = make_shard([3, 1, 5])  # tokens [0, 5), [5, 8), [8, 15)
    assert shard.names(0, 1) == ["doc0"]
    assert shard.names(4, 5) == ["doc0"]
    assert shard.names(4, 6) == ["doc0", "doc1"]
    assert shard.names(5, 8) == ["doc1"]
    assert shard.names(14, 99) == ["doc2"]


def test_the_front_part_holds_whole_documents(make_shard: MakeShard) -> None:
    """Bug: bits per byte on a part of the validation set divides by bytes that were not scored."""
    shard = make_shard([3, 1, 5])  # 30, 10 and 50 bytes of text
    for wanted, documents, text_bytes in [(1, 1, 30), (30, 1, 30), (31, 2, 40), (41, 3, 90), (10**9, 3, 90)]:
        span = shard.span(wanted)
        assert (len(span.bounds), span.text_bytes) == (documents, text_bytes)
        assert span.tokens[-1] == 1
        assert len(span.tokens) == sum(len(shard.document(i)) for i in range(documents))
    assert len(shard.span().tokens) == len(shard)


def test_nothing_appears_when_the_writer_fails(tmp_path: Path) -> None:
    """Bug: a shard of half the corpus is taken for the corpus."""
    with pytest.raises(RuntimeError), write_shard(tmp_path / "a.bin", vocab_size=9, tokenizer_hash="t") as writer:
        writer.add([0, 1], "a", 0)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_the_header_describes_the_file_without_groundup(make_shard: MakeShard) -> None:
    """Bug: the documented layout is not the layout."""
    shard = make_shard([3, 1])
    raw = shard.path.read_bytes()
    header = json.loads(raw[48 : 48 + int.from_bytes(raw[8:16], "little")])
    payload = raw[4096:]
    offset, size = header["sections"]["tokens"]
    assert np.frombuffer(payload[offset : offset + size], "<u2").tolist() == shard.tokens.tolist()
    offset, size = header["sections"]["starts"]
    assert np.frombuffer(payload[offset : offset + size], "<i8").tolist() == [0, 5, 8]
    offset, size = header["sections"]["ids"]
    assert payload[offset : offset + size] == b"doc0doc1"
