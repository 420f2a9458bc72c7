"""Are the shards what the corpus was, each document on one side, and is damage seen?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from groundup.data import shard
from groundup.data.shard import HEADER_BYTES, Shard
from groundup.errors import UserError
from groundup.verify.check import Measurement, check, violations
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.subject import Subject

SCAN = 20_000_000  # tokens of a real shard that are looked at, from the front


@check(
    "document-ends",
    "identity",
    "data",
    bug="Documents have two BOS or none, or no end-of-text: the model never learns to stop, or starts off balance.",
    remedy="data/prepare.py writes [bos] + ids + [eos]; nobody else may add either.",
    reference=(
        "princeton-pli/retaining-by-doing issue 5; stanford-crfm/mistral issue 91; datawhalechina/happy-llm issue 33"
    ),
)
def document_ends(subject: Subject) -> Measurement:
    """Documents that do not begin with BOS and end with EOS, and further BOS or EOS inside; micro and real shards."""
    found, looked = [], 0
    for name, one, tokenizer in subject.shards():
        tokens = np.asarray(one.tokens[:SCAN])
        starts = one.bounds[one.bounds < len(tokens)]
        ends = np.append(one.bounds[1:], len(one.tokens)) - 1
        ends = ends[ends < len(tokens)]
        wrong = {
            "begin without BOS": (tokens[starts] != tokenizer.bos).sum(),
            "end without EOS": (tokens[ends] != tokenizer.eos).sum(),
            "have a further BOS or EOS": abs(
                np.isin(tokens, (tokenizer.bos, tokenizer.eos)).sum() - len(starts) - len(ends)
            ),
        }
        found += [f"{name}: {n} documents {what}" for what, n in wrong.items() if n]
        looked += len(starts)
    return violations(found, looked)


@check(
    "tokens-in-tokens-out",
    "identity",
    "data",
    bug="Text is lost, cut or repeated between reading and the shard.",
    remedy="Compare the shard's documents with data/read.py's, one by one; see ShardWriter.add.",
    reference="stanford-crfm/mistral issue 189; stanfordnlp/GloVe issue 28; huggingface/trl pull 5076",
)
def tokens_in_tokens_out(subject: Subject) -> Measurement:
    """Documents of the corpus whose ids in the micro shards are not [bos] + encode(text) + [eos], or are missing or
    there twice; and a header whose count of tokens or bytes is not the corpus's."""
    tokenizer, both = subject.micro_tokenizer, subject.micro_shards
    expected = sorted([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in MICRO_CORPUS)
    got = sorted(one.document(i).tolist() for one in (both.train, both.validation) for i in range(one.n_documents))
    found = [] if len(got) == len(expected) else [f"{len(expected)} documents went in, {len(got)} came out"]
    found += [tokenizer.decode(a)[:40] for a, b in zip(expected, got, strict=False) if a != b]
    n_bytes = both.train.text_bytes + both.validation.text_bytes
    if n_bytes != sum(len(text.encode()) for text in MICRO_CORPUS):
        found.append(f"the headers say {n_bytes} bytes of text")
    return violations(found, len(expected))


@check(
    "shard-belongs-to-tokenizer",
    "identity",
    "data",
    bug="Shards made with another tokenizer are trained on: every id means another word, and the loss still falls.",
    remedy="Open shards with the tokenizer's hash: Shard(path, tokenizer.hash) refuses any other.",
    reference="mlfoundations/open_lm pull 77; allenai/dolma issue 142",
)
def shard_belongs_to_tokenizer(subject: Subject) -> Measurement:
    """Shards whose header has another hash or vocabulary than the tokenizer in use, that hold an id outside it, or
    that open under a wrong hash."""
    found, looked = [], 0
    for name, one, tokenizer in subject.shards():
        looked += 1
        if one.header["tokenizer_hash"] != tokenizer.hash:
            found.append(f"{name} was made with another tokenizer")
        if one.header["vocab_size"] != tokenizer.vocab_size:
            found.append(f"{name}: vocabulary {one.header['vocab_size']}, the tokenizer has {tokenizer.vocab_size}")
        if int(np.asarray(one.tokens[:SCAN]).max()) >= tokenizer.vocab_size:
            found.append(f"{name} holds ids outside the vocabulary")
        if not _refused(lambda one=one: Shard(one.path, "0" * 64)):  # type: ignore[misc]
            found.append(f"{name} opens with a tokenizer that did not make it")
    return violations(found, looked)


def _refused(call: Callable[[], Any]) -> bool:
    try:
        call()
    except UserError:
        return True
    return False


@check(
    "shards-are-whole",
    "identity",
    "data",
    bug="A shard has changed since it was written: a failing disk, an interrupted copy, an edit.",
    remedy="Delete the data stage's folder and run the same command again.",
    reference="osaurus-ai/vmlx-swift pull 217; mosaicml/streaming issues 399, 677; FudanCVL/EffectErase issue 19",
)
def shards_are_whole(subject: Subject) -> Measurement:
    """Shards, micro and real, whose payload is not what their checksum says; all of it is read."""
    found, looked = [], 0
    for name, one, _ in subject.shards():
        looked += 1
        if _refused(one.verify):
            found.append(name)
    return violations(found, looked)


@check(
    "damaged-shard-is-seen",
    "sensitivity",
    "data",
    bug="A flipped bit or a cut file goes unnoticed: noise is trained on.",
    remedy="Shard.verify() must hash the whole payload; the header must be checked against its own hash and the size.",
    reference="osaurus-ai/vmlx-swift pull 217; hiyouga/LlamaFactory issue 3172",
)
def damaged_shard_is_seen(subject: Subject) -> Measurement:
    """Damages (one bit of the first and of the last token, of the header, one byte cut off) that nothing refuses."""
    found = []
    original = subject.micro_shards.train.path
    with subject.scratch() as folder:
        path = folder / "copy.bin"
        size = original.stat().st_size
        places = {"first token": HEADER_BYTES, "payload's end": size - 1, "header": 60, "cut by a byte": None}
        for name, place in places.items():
            shutil.copy(original, path)
            with open(path, "r+b") as file:
                if place is None:
                    file.truncate(size - 1)
                else:
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ 1]))
            if not _refused(lambda: Shard(path).verify()):
                found.append(name)
        shutil.copy(original, path)
        if _refused(lambda: Shard(path).verify()):
            found.append("an undamaged shard is refused")
    return violations(found, 5)


@check(
    "dtype-holds-vocabulary",
    "identity",
    "data",
    bug="uint16 ids wrap around past 65,535: rare words turn into frequent ones, and nothing fails.",
    remedy="uint32 for vocabularies above 65,536, and a check of the largest id before the cast (data/shard.py).",
    reference="urvashik/knnlm issue 6; huggingface/datatrove issue 118; mlfoundations/open_lm pull 77",
)
def dtype_holds_vocabulary(subject: Subject) -> Measurement:
    """Vocabularies (300; 65,536; 65,537; 200,000) whose largest id does not come back from a shard, and ids outside
    the vocabulary that are accepted."""
    found = []
    with subject.scratch() as folder:
        for size in (300, 65_536, 65_537, 200_000):
            path = folder / f"{size}.bin"
            with shard.write_shard(path, vocab_size=size, tokenizer_hash="x") as writer:
                writer.add([0, size - 1, 1], "d", 3)
            if Shard(path).tokens.tolist() != [0, size - 1, 1]:
                found.append(f"{size:,}: got {Shard(path).tokens.tolist()}")
            try:
                with shard.write_shard(folder / "bad.bin", vocab_size=size, tokenizer_hash="x") as writer:
                    writer.add([0, size], "d", 3)
                found.append(f"{size:,}: id {size:,} is accepted")
            except (ValueError, UserError):
                pass
    return violations(found, 8)


@check(
    "train-validation-disjoint",
    "locality",
    "data",
    bug="Held-out text is trained on: validation measures memory.",
    remedy="Split by a hash of the document's text (data/prepare.py), so that copies fall on one side.",
    reference="huggingface/datasets issue 4261; bazingagin/npc_gzip issue 13; embeddings-benchmark/mteb issue 1036",
)
def train_validation_disjoint(subject: Subject) -> Measurement:
    """Validation documents whose exact tokens also stand in train: real shards, and a corpus of 60 documents, each
    three times, with deduplication off (where only the rule of the split keeps copies together)."""
    found, looked = [], 0
    with subject.scratch() as folder:
        tripled = subject.prepare(folder, MICRO_CORPUS[:60] * 3, validation=0.3, deduplicate=False)
        for name, both in (("micro", tripled), ("real", subject.real_shards)):
            if both is None:
                continue
            train, validation = _documents(both.train), _documents(both.validation)
            shared = train & validation
            looked += len(validation)
            if shared:
                found.append(f"{name}: {len(shared)} of {len(validation)} validation documents are in train")
    return violations(found, looked)


def _documents(one: Shard) -> set[bytes]:
    tokens = np.asarray(one.tokens[:SCAN])
    starts = one.bounds[one.bounds < len(tokens)]
    return {part.tobytes() for part in np.split(tokens, starts[1:])}


@check(
    "duplicates-are-found",
    "sensitivity",
    "data",
    bug="Deduplication finds nothing (or drops what is no copy): repeated text is memorised, or text is lost.",
    remedy="Compare whole texts by hash, before the split (data/prepare.py).",
    reference=(
        "huggingface/datatrove issue 107; marin-community/marin issue 6854; benseverndev-oss/goldenmatch issue 1150"
    ),
)
def duplicates_are_found(subject: Subject) -> Measurement:
    """|documents kept - distinct texts| of a corpus in which 40 documents stand three times, deduplication on; and
    with it off, |kept - all|. Texts that differ by a space are distinct."""
    texts = MICRO_CORPUS[:40] * 3 + [text + " " for text in MICRO_CORPUS[:10]]
    wrong = 0
    for on, expected in ((True, len(set(texts))), (False, len(texts))):
        with subject.scratch() as folder:
            both = subject.prepare(folder, texts, validation=0.3, deduplicate=on)
            wrong += abs(both.train.n_documents + both.validation.n_documents - expected)
    return Measurement(float(wrong), 0.0, f"{len(texts)} documents, {len(set(texts))} distinct")


@check(
    "split-depends-on-text-alone",
    "invariance",
    "data",
    bug="Adding a source moves documents from validation to train: runs are compared on text one of them has seen.",
    remedy="The side must be a function of the document's text, not of its index or of a running random state.",
    reference="TensorAuto/OpenTau pull 498; marin-community/marin pull 2700; openai/parameter-golf issue 2127",
)
def split_depends_on_text_alone(subject: Subject) -> Measurement:
    """Of 80 documents, those that change sides when the order is reversed and 40 others are read before them."""
    with subject.scratch() as folder:
        first = subject.prepare(folder / "a", MICRO_CORPUS[:80], validation=0.3)
        second = subject.prepare(folder / "b", MICRO_CORPUS[80:120] + MICRO_CORPUS[79::-1], validation=0.3)
        moved = len(_documents(first.train) & _documents(second.validation))
        moved += len(_documents(first.validation) & _documents(second.train))
        n = first.train.n_documents + first.validation.n_documents
    return Measurement(float(moved), 0.0, f"{n} documents")
