"""First pass of a build, a part at a time: read, clean, filter, decontaminate; note what copies are found by."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from groundup.data.build import Build, PartJob, batches, summary_of, write_summary
from groundup.data.decontaminate import Decontaminate
from groundup.data.dedup.lines import Units
from groundup.data.dedup.lsh import write_bands
from groundup.data.dedup.minhash import NOTHING, Signature
from groundup.data.document import Document, Item, Step, hash_words
from groundup.data.faults import Faults
from groundup.data.filters import steps_of
from groundup.data.manifest import EXAMPLE_CHARACTERS, EXAMPLES_EACH
from groundup.data.parts import Part, read_part
from groundup.data.sources.tokens import Vocabulary
from groundup.record.files import atomic_file, disk_errors

CHANGED = "changed"  # examples of texts that a step mended
ON_DISK = ("examples", "items")  # of a part's summary: those of thousands of parts would fill the memory
_REPEATING = ["source", "licence", "meta", "rule", "language"]  # columns with few different values
# Rows of work/read/*.parquet. text and tokens are null for a document that was dropped.
COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("meta", pa.string()),
        ("rule", pa.string()),
        ("detail", pa.string()),
        ("other", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.binary()),  # uint32, for documents that came as ids
        ("digest", pa.binary(16)),
        ("place", pa.float64()),
        ("bytes_in", pa.int64()),
        ("bytes_out", pa.int64()),
        ("words", pa.int64()),
        ("language", pa.string()),
        ("quality", pa.float32()),
    ]
)


def place(text: str | bytes) -> tuple[bytes, float]:
    """(16-byte hash of the text, where that lies in [0, 1)). The second decides train or validation.

    It depends on the text alone: a document stays on its side whatever is read before it, whatever the seed,
    and a copy can never be on the other side.
    """
    digest = hashlib.blake2b(text if isinstance(text, bytes) else text.encode(), digest_size=16).digest()
    return digest, int.from_bytes(digest[:6], "big") / (1 << 48)


@dataclass
class Tools:
    """What a process builds once for all parts of a build."""

    steps: list[Step]
    signature: Signature | None

    @classmethod
    def of(cls, build: Build, filtered: bool) -> Tools:
        section = build.section
        if not filtered:
            section = section.unfiltered()
        steps = steps_of(section, Path(build.base), build.classifier)
        if section.decontaminate is not None:
            steps.append(Decontaminate(section.decontaminate, build.index))
        copies = section.deduplicate
        return cls(steps, Signature(copies.minhash) if copies.minhash is not None else None)


_tools: dict[tuple[str, str, bool], Tools] = {}


def tools(build: Build, filtered: bool) -> Tools:
    """The tools of this build, with its filters or without; those of an earlier build are let go."""
    this = (build.folder, build.key)
    for other in [key for key in _tools if key[:2] != this]:
        del _tools[other]
    if (*this, filtered) not in _tools:
        _tools[*this, filtered] = Tools.of(build, filtered)
    return _tools[*this, filtered]


@dataclass
class Counts:
    """What is counted while a part goes by; its JSON is the part's summary."""

    read: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # source -> documents, bytes
    dropped: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # rule -> the same
    changed: Counter[str] = field(default_factory=Counter)
    items: list[list[str]] = field(default_factory=list)  # benchmark items in each contaminated document
    examples: dict[str, list[tuple[str, dict[str, str]]]] = field(default_factory=lambda: defaultdict(list))

    def met(self, item: Item, bytes_in: int, digest: bytes) -> None:
        document = item.document
        self.read[document.source].update(documents=1, bytes=bytes_in)
        if "items" in item.values:
            self.items.append(list(item.values["items"]))
        if item.rule:
            self.dropped[item.rule].update(documents=1, bytes=bytes_in)
            self._example(item.rule, item, digest)
        elif item.text != document.text:
            self._example(CHANGED, item, digest)

    def _example(self, rule: str, item: Item, digest: bytes) -> None:
        """Keep the few with the lowest hash: a draw that does not depend on who read what first."""
        kept, key = self.examples[rule], digest.hex()
        if len(kept) == EXAMPLES_EACH and key >= kept[-1][0]:
            return
        document, after = item.document, ""
        text = document.text[:EXAMPLE_CHARACTERS]
        if rule == CHANGED:
            text, after = around_change(document.text, item.text)
        row = {"rule": rule, "id": document.id, "source": document.source, "detail": item.detail}
        kept.append((key, {**row, "text": text, "after": after}))
        self.examples[rule] = heapq.nsmallest(EXAMPLES_EACH, kept, key=lambda pair: (pair[0], pair[1]["id"]))


def around_change(before: str, after: str) -> tuple[str, str]:
    """The two texts from a little before the first place where they differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # the longest common beginning, by halving
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[:middle] == after[:middle] else (low, middle - 1)
    start = max(0, low - 200)
    return before[start : start + EXAMPLE_CHARACTERS], after[start : start + EXAMPLE_CHARACTERS]


def gather(job: PartJob, tick: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Read one part and write what came of each of its documents; returns the counts, and leaves them with ON_DISK.

    A part that was finished before is not read again. tick(documents) is called after each batch.
    """
    found = summary_of(job.build.read(job.part.index))
    if found is None:
        found = _gather(job.build, job.part, tick)
    return {key: value for key, value in found.items() if key not in ON_DISK}


def _gather(build: Build, part: Part, tick: Callable[[int], None] | None) -> dict[str, Any]:
    source, path = build.section.sources[part.source], build.read(part.index)
    made = tools(build, source.filtered)
    steps = made.steps
    if source.kind == "tokens":  # the ids are kept as they came: nothing is mended, and no filter judges them
        steps = [step for step in steps if isinstance(step, Decontaminate)]
    for step in steps:
        step.counts.clear()
    counts, faults, rows = Counts(), Faults(strict=build.section.strict), 0
    bands: list[NDArray[np.uint64]] = []
    unit = build.section.deduplicate.unit
    units = Units(unit) if unit is not None and source.kind != "tokens" else None
    documents = read_part(build.section, part, build.seed, build.base, faults, build.vocabulary)
    # Read once, soon, and thrown away: what packs fast is better than what packs well.
    packing: dict[str, Any] = {"compression": "lz4", "use_dictionary": _REPEATING, "write_statistics": False}
    with atomic_file(path) as file, pq.ParquetWriter(file, COLUMNS, **packing) as writer:
        for batch in batches(_items(documents, build.vocabulary), lambda item: len(item.text)):
            for step in steps:
                step(batch)
            writer.write_batch(_rows(batch, made, counts))
            if made.signature is not None:
                bands.append(signed(batch, made.signature))
            if units is not None:
                for row, item in enumerate(batch, start=rows):
                    if not item.rule:
                        units.add(row, item.text)
            rows += len(batch)
            if tick:
                tick(len(batch))
    with disk_errors(path):
        if made.signature is not None:
            write_bands(build.bands(part.index), np.concatenate([signed([], made.signature), *bands]))
        if unit is not None:
            (units or Units(unit)).write(build.units(part.index))
    for step in steps:
        counts.changed.update(step.counts)
    return write_summary(
        path,
        {
            "rows": rows,
            "read": counts.read,
            "dropped": counts.dropped,
            "changed": counts.changed,
            "items": counts.items,
            "examples": counts.examples,
            "faults": faults.to_json(),
        },
    )


def signed(batch: Sequence[Item], signature: Signature) -> NDArray[np.uint64]:
    """(items, bands) of a batch. One that is dropped already has no near duplicates to lose: NOTHING in all bands."""
    out = np.full((len(batch), signature.preset.bands), NOTHING, np.uint64)
    kept = [i for i, item in enumerate(batch) if not item.rule]
    if kept:
        hash_words([batch[i] for i in kept])  # of all at once: faster than one by one
        out[kept] = signature.bands([batch[i] for i in kept])
    return out


def _items(documents: Iterable[Document], vocabulary: Vocabulary) -> Iterator[Item]:
    """A document that came as ids gets the text they stand for: copies and benchmark items are found by text."""
    for document in documents:
        if document.tokens is not None:
            document = replace(document, text=vocabulary.text(document.tokens))
        item = Item.of(document)
        if not document.text.strip():
            item.drop("empty", "no text, or white space alone")
        yield item


_STRICT = json.JSONEncoder(ensure_ascii=False, default=str, allow_nan=False)  # made once: json.dumps makes one a call


def _json(meta: dict[str, Any]) -> str:
    """JSON as everybody reads it: what pandas leaves in a column of numbers, NaN, becomes null."""
    try:
        return _STRICT.encode(meta) if meta else "{}"
    except ValueError:
        plain = json.loads(json.dumps(meta, default=str), parse_constant=lambda _: None)
        return json.dumps(plain, ensure_ascii=False)


def _rows(batch: list[Item], made: Tools, counts: Counts) -> pa.RecordBatch:
    """The batch as rows of COLUMNS."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS.names}
    for item in batch:
        document = item.document
        if not item.rule and not item.text.strip():
            item.drop("empty", "no text left after cleaning")
        raw = document.text.encode()
        unchanged = item.text is document.text
        out = raw if unchanged else item.text.encode()
        digest, where = place(out)
        counts.met(item, len(raw), digest)
        keep = not item.rule
        columns["id"].append(document.id)
        columns["source"].append(document.source)
        columns["licence"].append(document.licence)
        columns["meta"].append(_json(document.meta))
        columns["rule"].append(item.rule)
        columns["detail"].append(item.detail)
        columns["other"].append(item.values.get("item", ""))
        columns["text"].append(item.text if keep and document.tokens is None else None)
        columns["tokens"].append(
            document.tokens.astype("<u4").tobytes() if keep and document.tokens is not None else None
        )
        columns["digest"].append(digest)
        columns["place"].append(where)
        columns["bytes_in"].append(len(raw))
        columns["bytes_out"].append(len(out) if keep else 0)
        columns["words"].append(item.values.get("words", -1))
        columns["language"].append(item.values.get("language", ""))
        columns["quality"].append(item.values.get("quality", float("nan")))
    return pa.record_batch([pa.array(columns[f.name], f.type) for f in COLUMNS], schema=COLUMNS)
