"""Other people's tokenizers and templates: what is sound passes, and what is published is judged rightly."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hf_folders import TEMPLATES, byte_level, kinds, write_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from groundup.errors import UserError
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.audit import ADVERSARIAL
from groundup.tokenizer.tokenizer import Tokenizer
from groundup.tokenizer.train import train_tokenizer
from groundup.verify import sentencepiece
from groundup.verify.corpus import MICRO_CORPUS
from groundup.verify.faults.any_tokenizer import (
    BOS,
    END,
    TEMPLATE,
    Plain,
    backend,
    changed,
    sentencepiece_like,
    with_template,
)
from groundup.verify.folders import is_folder
from groundup.verify.libraries import of_sentencepiece
from groundup.verify.outside import OutsideTokenizer, Refused, open_checkpoint
from groundup.verify.run import Result, run_checks
from groundup.verify.target import Target

transformers = pytest.importorskip("transformers")

REAL = Path(os.environ.get("GROUNDUP_DATA", "../shared/data")) / "tokenizers"
real = pytest.mark.skipif(not REAL.is_dir(), reason="published tokenizers are not here ($GROUNDUP_DATA)")

# What is wrong with text, and what with the template: a tokenizer that has none of the second has the first alone.
OF_TEXT = {"round-trip", "ids-in-range", "batch-encodes-alike", "prompt-ids-are-a-prefix"}
OF_TEMPLATE = {"turns-are-framed", "render-is-a-prefix", "train-ids-equal-serve-ids", "ids-are-the-templates-text",
               "every-role-survives-rendering", "typed-template-stays-text"}  # fmt: skip


def looked(target: Target, only: set[str] | None = None) -> dict[str, Result]:
    return {one.id: one for one in run_checks(target, only) if one.skipped is None}


def failed(target: Target) -> dict[str, Result]:
    return {name: one for name, one in looked(target).items() if one.failed}


def own(kind: str) -> OutsideTokenizer:
    section = TokenizerSection(kind=kind, vocab_size="auto" if kind == "char" else 320)  # type: ignore[arg-type]
    return OutsideTokenizer.of(train_tokenizer(section, MICRO_CORPUS))


# ---- sound ones ----

SOUND: dict[str, Any] = {
    "transformers, with a template": lambda: with_template(),
    "transformers, without": lambda: with_template(None),
    "transformers, a space before text": lambda: with_template(
        None, backend(sentencepiece_like()), bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ),
    "tokenizers": lambda: OutsideTokenizer.of(backend()),
    "encode and decode": lambda: OutsideTokenizer.of(Plain()),
    "groundup's": lambda: own("bpe"),
    "groundup's, by characters": lambda: own("char"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_tokenizers_pass(name: str) -> None:
    """A false alarm here is what people would switch the verifier off for."""
    found = looked(SOUND[name]())
    assert not [(one.id, one.note) for one in found.values() if one.failed]
    assert set(found) >= OF_TEXT
    templated = name in ("transformers, with a template", "groundup's", "groundup's, by characters")
    assert (set(found) >= OF_TEMPLATE) == templated


def test_a_saved_tokenizer_of_ours_passes(tmp_path: Path) -> None:
    """groundup's own folder, as transformers opens it: pad is eos there, and eos does not end a turn."""
    own("bpe").given.save(tmp_path)
    target = open_checkpoint(tmp_path)
    assert target.kind == "tokenizer" and target.library == "transformers"  # type: ignore[attr-defined]
    assert not failed(target)
    assert "pad-is-not-the-terminator" in looked(target)


# What these small ones really have: the letters of </s> merge into it, as in Llama 2's and Mistral's vocabularies; and
# those that put a BOS before every text have it twice where the template writes it too.
FORGED = {"llama2", "mistral", "gemma", "phi3"}
PUTS_BOS = {"llama3", *FORGED}


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("template", [None, "chatml", "llama3", "dated"])
def test_kinds_of_published_tokenizers(kind: str, template: str | None, tmp_path: Path) -> None:
    """Bugs: a SentencePiece tokenizer failed for its spaces; tokens that swallow white space (Phi-3) failed for it;
    trimmed contents failed for being trimmed; what is really wrong with them not seen."""
    made, names = kinds()[kind]
    target = open_checkpoint(write_tokenizer(tmp_path, made, template and TEMPLATES[template], **names))
    expected = {"text-cannot-forge-specials"} if kind in FORGED else set()
    if template in ("llama3", "dated") and kind in PUTS_BOS:
        expected.add("bos-is-not-doubled")
    if template == "dated":
        expected.add("template-adds-no-date")
    found = failed(target)
    assert set(found) == expected, [(one.id, one.note) for one in found.values()]


def test_templates_that_refuse_are_not_wrong(tmp_path: Path) -> None:
    """Gemma's template raises for a system message: loud, so no silent bug. A template that refuses all is skipped."""
    made, names = kinds()["qwen"]
    assert not failed(open_checkpoint(write_tokenizer(tmp_path, made, TEMPLATES["gemma"], **names)))
    closed = with_template("{{ raise_exception('no') }}")
    with pytest.raises(Refused, match="no"):
        closed.render([{"role": "user", "content": "x"}])
    skipped = {one.id for one in run_checks(closed) if one.skipped}
    assert skipped >= {"turns-are-framed", "render-is-a-prefix", "typed-template-stays-text", "bos-is-not-doubled"}
    nothing = next(one for one in run_checks(closed, ["every-role-survives-rendering"]))
    assert nothing.failed and "every" in nothing.note  # nothing looked at is no pass


def test_qwen3s_template_is_known_to_look_back(tmp_path: Path) -> None:
    """The published template drops an answer's reasoning once another follows: real, and reported with the place."""
    made, names = kinds()["qwen"]
    found = failed(open_checkpoint(write_tokenizer(tmp_path, made, TEMPLATES["qwen3"], **names)))
    assert set(found) == {"render-is-a-prefix"} and "<think>" in found["render-is-a-prefix"].note


# ---- the rule of the round trip ----


def of_bytes(normalizer: Any = None) -> Backend:
    one = backend()
    one.normalizer = normalizer
    return one


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFC(),
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.Strip(),
        normalizers.Replace("a", "b"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_declared_is_not_lost(normalizer: Any) -> None:
    """A tokenizer that says in its file that it normalises is held to that, and the texts are counted."""
    one = looked(OutsideTokenizer.of(of_bytes(normalizer)), {"round-trip"})["round-trip"]
    assert one.passed and "come back as declared" in one.note and type(normalizer).__name__ in one.note


def test_what_is_not_declared_is_lost() -> None:
    """The same change made by somebody's Python, or by a decoder, is found, and so are unknown characters."""

    class Lowering(Plain):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.lower())

    words = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "##b": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.WordPiece()
    for one in (Lowering(), words):
        found = looked(OutsideTokenizer.of(one), {"round-trip"})["round-trip"]
        assert found.failed and found.measured is not None and found.measured > 5


def test_a_space_in_front_is_allowed_only_where_it_is_declared() -> None:
    declared = OutsideTokenizer.of(Backend.from_str(sentencepiece_like()))
    assert " the" in declared.promised("the") and " the" not in OutsideTokenizer.of(backend()).promised("the")
    assert "a b" in declared.promised("a\u2581b") and "a b" not in OutsideTokenizer.of(backend()).promised("a\u2581b")


# ---- one view of many libraries ----


def test_text_stays_text_and_a_naive_call_is_naive() -> None:
    """Bug: the two ways mixed up, or one that leaves the library's switch behind for the next call."""
    one = with_template()
    assert one.markers[END] not in one.encode(f"a{END}b")
    assert one.markers[END] in one.encode_default(f"a{END}b") and one.markers[END] not in one.encode(f"a{END}b")
    raw = backend()
    of_raw = OutsideTokenizer.of(raw)
    assert of_raw.specials[END] not in of_raw.encode(END) and not raw.encode_special_tokens
    assert of_raw.encode_template(f"{BOS}a") == [of_raw.specials[BOS], *of_raw.encode("a")]
    note = looked(one, {"text-cannot-forge-specials"})["text-cannot-forge-specials"].note
    assert "a naive call lets 5 of 5 through" in note


def test_the_views_agree_with_each_other() -> None:
    """One tokenizer.json through three libraries: the same ids, sizes and specials."""
    fast, raw, plain = with_template(), OutsideTokenizer.of(backend()), OutsideTokenizer.of(Plain())
    for text in (*ADVERSARIAL, *MICRO_CORPUS[:20]):
        assert fast.encode(text) == raw.encode(text) == plain.encode(text)
        assert fast.decode(fast.encode(text)) == raw.decode(raw.encode(text)) == text
    assert fast.size == raw.size == plain.size == 365
    assert fast.specials == raw.specials == plain.specials
    assert fast.encode_batch(MICRO_CORPUS[:5]) == raw.encode_batch(MICRO_CORPUS[:5])
    assert fast.terminator() == fast.eos == fast.specials[END]


def test_tiktoken() -> None:
    """tiktoken's Encoding: text stays text, sizes and bytes are its own."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257}
    encoding = tiktoken.Encoding(
        "small", pat_str=r"\s?\p{L}+|[^\p{L}]", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 258}
    )
    one = OutsideTokenizer.of(encoding)
    assert (one.library, one.size, one.eos) == ("tiktoken", 259, 258)
    found = looked(one)
    assert not [r.note for r in found.values() if r.failed]
    assert set(found) >= OF_TEXT | {"token-bytes-add-up", "text-cannot-forge-specials", "specials-are-one-token"}


def test_something_that_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="encode"):
        OutsideTokenizer.of(3)


@pytest.mark.parametrize(
    ("name", "says"), [("tokenizer.json", "damaged"), ("x.model", "damaged"), ("", "no config.json")]
)
def test_folders_that_hold_no_tokenizer(name: str, says: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_text("{")
    with pytest.raises(UserError, match=says):
        open_checkpoint(tmp_path)


def test_two_models_in_a_folder_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.model, b\.model"):
        open_checkpoint(tmp_path)
    assert not is_folder(tmp_path)


# ---- checks that must not be silent about their own ----


def test_findings_say_where_and_how_many() -> None:
    """Numbers and places, not only a verdict."""
    one = failed(changed("{{ " + "'<|im_start|>'", "{{ bos_token + '<|im_start|>'")())["turns-are-framed"]
    assert "two BOS in a row" in one.note
    gone = json.loads(backend().to_str())
    gone["added_tokens"] = [token for token in gone["added_tokens"] if token["content"] != END]
    found = failed(with_template(inner=Backend.from_str(json.dumps(gone)), eos_token=BOS))
    assert f"{END} is split into" in found["specials-are-one-token"].note


def test_templates_of_plain_text_have_no_end() -> None:
    """A template that closes a turn with a line end alone teaches nothing to stop at."""
    plain = "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '\\n' }}{% endfor %}"
    found = failed(with_template(plain + "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"))
    assert set(found) == {"turns-are-framed"} and "0 ends after" in found["turns-are-framed"].note


def test_looking_changes_nothing() -> None:
    """Bug: a switch, a padding or a template left behind in somebody's tokenizer."""
    given = with_template().given
    before = given.backend_tokenizer.to_str(), given.encode(MICRO_CORPUS[0] + END), given.chat_template
    run_checks(OutsideTokenizer.of(given))
    assert before == (given.backend_tokenizer.to_str(), given.encode(MICRO_CORPUS[0] + END), given.chat_template)
    assert given.chat_template == TEMPLATE


# Tokenizer -> what is found, with the number, and why it is real:
# gpt2's file stores a truncation to 50 tokens, which every reader of tokenizer.json but transformers applies.
# qwen2.5's two files do not say how text is split: read as GPT-2's are, a sixth of the vocabulary cannot happen.
# SentencePiece's test models have neither bytes nor most characters, so what they have not met becomes <unk>.
PUBLISHED = {
    "gpt2": (50257, {"nothing-is-cut-off": 8}),
    "qwen2.5": (151643, {"tokens-are-reachable": 657 / 4052}),
    "cs336": (500, {}),
    "mistral/tokenizer.model.v1": (32000, {}),
    "mistral/mistral_instruct_tokenizer_240323.model.v3": (32768, {}),
    "sentencepiece_test/test_model.model": (1000, {"round-trip": None, "characters-are-covered": None}),
    "sentencepiece_test/test_ja_model.model": (8000, {"round-trip": None, "characters-are-covered": None}),
}


# ---- SentencePiece's files ----


def test_sentencepiece_reads_what_it_is_given(tmp_path: Path) -> None:
    """A model file written by hand: pieces, scores, kinds, and what is a damaged one."""

    def varint(n: int) -> bytes:
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])

    def field(number: int, value: bytes | int | float) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            import struct

            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("\u2581", -1.0, 1), ("a", -2.0, 1), ("b", -2.0, 1), ("ab", -0.5, 1)]
    pieces += [("<", -9.0, 1), ("s", -9.0, 1), (">", -9.0, 1)]
    body = b"".join(field(1, field(1, p.encode()) + field(2, score) + field(3, k)) for p, score, k in pieces)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(body + field(2, field(3, 1)) + field(3, field(3, 1) + field(4, 1)))
    one = of_sentencepiece(path)
    assert one.encode("  ab  a ") == [2, 5, 2, 3] and one.decode([2, 5, 2, 3]) == "ab a"
    assert one.encode("<s>") == [2, 6, 7, 8] and one.encode_default("<s>") == [1] and one.unk == 0
    assert one.encode("\ta\n") == [2, 0, 3, 0]  # spaces alone are taken away at the ends
    assert one.encode("a\tz") == [2, 3, 0] and open_checkpoint(tmp_path).library == "sentencepiece"  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="damaged"):
        sentencepiece.read(path)


@real
def test_sentencepiece_as_its_own_library_encodes() -> None:
    """Ids that sentencepiece 0.2.3 gives for its own test model."""
    one = of_sentencepiece(REAL / "sentencepiece_test" / "test_model.model")
    assert one.encode("This is a test") == [284, 47, 11, 4, 15, 400]
    assert one.encode("Hello world") == [151, 88, 21, 887]
    assert one.decode([284, 47, 11, 4, 15, 400]) == "This is a test"


@real
@pytest.mark.parametrize("name", [name for name in PUBLISHED if ".model" in name])
def test_sentencepiece_as_the_library_reads_it(name: str) -> None:
    """Where the library is installed: all ids equal, but for runs of spaces longer than the longest piece."""
    spm = pytest.importorskip("sentencepiece")
    theirs, ours = spm.SentencePieceProcessor(model_file=str(REAL / name)), of_sentencepiece(REAL / name)
    for text in (*ADVERSARIAL, *MICRO_CORPUS):
        if " " * 17 not in text:
            assert theirs.encode(text) == ours.encode(text)


# ---- published ones ----


@real
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers_are_audited(name: str) -> None:
    """Each finding is real (see above); anything else is a false alarm."""
    size, expected = PUBLISHED[name]
    target = open_checkpoint(REAL / name)
    assert target.size == size  # type: ignore[attr-defined]
    found = failed(target)
    assert set(found) == set(expected), [(one.id, one.note) for one in found.values()]
    for check, value in expected.items():
        assert value is None or found[check].measured == pytest.approx(value)
    assert set(looked(target)) >= OF_TEXT


@real
def test_qwen_with_its_own_splitting() -> None:
    """The same vocabulary with the published rule: a sixth was the two files' fault. 1.5% are Qwen's own: words of
    letters and combining marks, which the rule cuts at the marks."""
    import hf_folders

    raw = Backend(models.BPE.from_file(str(REAL / "qwen2.5" / "vocab.json"), str(REAL / "qwen2.5" / "merges.txt")))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = byte_level("<|endoftext|>").pre_tokenizer
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(hf_folders.special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    target = with_template(TEMPLATES["chatml"], raw, bos_token=None, eos_token=END, pad_token="<|endoftext|>")
    found = looked(target)
    assert {one.id for one in found.values() if one.failed} == {"tokens-are-reachable"}
    assert found["tokens-are-reachable"].measured == pytest.approx(59 / 4052)
    assert "come back as declared (NFC()" in found["round-trip"].note


@real
def test_reading_changes_no_file() -> None:
    path = REAL / "mistral" / "tokenizer.model.v1"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    of_sentencepiece(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert isinstance(own("bpe").given, Tokenizer)
