from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
from pathlib import Path

import pytest

from groundup.errors import UserError
from groundup.tokenizer.audit import ADVERSARIAL
from groundup.tokenizer.tokenizer import SPECIALS, Tokenizer

HAS_SPECIAL = [text for text in ADVERSARIAL if any(s in text for s in SPECIALS)]
ORDINARY = [text for text in ADVERSARIAL if text not in HAS_SPECIAL]


@pytest.mark.parametrize("text", ADVERSARIAL, ids=lambda t: ascii(t)[:30])
def test_round_trip_is_byte_exact(tokenizer: Tokenizer, text: str) -> None:
    """Bug: a normaliser, a prefix space, CRLF folding or the U+FFFD of a cut character changes the text."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_round_trip_of_random_unicode(tokenizer: Tokenizer) -> None:
    """Bug: a plane, or an unassigned or private character, that the chosen examples miss."""
    rng = random.Random(0)
    for _ in range(300):
        points = (
            rng.choice([rng.randrange(128), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(20)
        )
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", HAS_SPECIAL)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    """Bug: a user writes <|end|><|assistant|> and puts words in the assistant's mouth."""
    for ids in [tokenizer.encode(text), *tokenizer.encode_batch([text, text * 3])]:
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_text_of_specials_in_the_corpus_does_not_teach_a_merge(texts: list[str]) -> None:
    """Bug: a corpus full of "<|end|>" merges its letters into the very token, and text reaches the special id."""
    from groundup.recipe.schema import TokenizerSection
    from groundup.tokenizer.train import train_tokenizer

    trained = train_tokenizer(TokenizerSection(vocab_size=400), [*texts, "".join(SPECIALS) * 500])
    for special in SPECIALS:
        assert not set(trained.encode(special * 2)) & set(range(6))
        assert trained.decode(trained.encode(special)) == special


@pytest.mark.parametrize("copied", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_copy_is_as_safe_as_the_original(tokenizer: Tokenizer, copied) -> None:
    """Bug: encode_special_tokens is lost on the way to a worker process, which then lets specials through."""
    other = copied(tokenizer)
    assert other.encode("<|end|>") == tokenizer.encode("<|end|>")
    assert (other.hash, other.template_hash) == (tokenizer.hash, tokenizer.template_hash)


def test_specials_are_the_first_ids(tokenizer: Tokenizer) -> None:
    """Bug: special ids that move with the corpus, so that checkpoints and exports disagree."""
    t = tokenizer
    assert [t.bos, t.eos, t.user, t.assistant, t.system, t.end] == [0, 1, 2, 3, 4, 5] == t.all_special_ids
    assert t.decode(range(6)) == "" and t.decode(range(6), skip_specials=False) == "".join(SPECIALS)
    assert [t.token_bytes(i) for i in range(6)] == [b""] * 6


def test_batch_equals_single(tokenizer: Tokenizer) -> None:
    """Bug: padding or truncation in the batched path."""
    assert tokenizer.encode_batch(ADVERSARIAL) == [tokenizer.encode(text) for text in ADVERSARIAL]


@pytest.mark.parametrize("bad", [-100, -1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, bad: int) -> None:
    """Bug: the ignore index -100 decodes as some token, because Python counts from the end of a list."""
    with pytest.raises(ValueError, match="outside"):
        tokenizer.decode([7, bad])
    with pytest.raises(ValueError, match="outside"):
        tokenizer.token_bytes(bad)


def test_lone_surrogate_is_a_clear_error(tokenizer: Tokenizer) -> None:
    """Bug: half an emoji from a JSON escape ends in a TypeError deep in a library."""
    for call in (lambda: tokenizer.encode("ab\ud83d"), lambda: tokenizer.encode_batch(["ok", "ab\ud83d"])):
        with pytest.raises(UserError, match=r"character 2 is the lone surrogate U\+D83D"):
            call()


def test_a_cut_character_decodes_as_replacement_and_its_bytes_are_kept(tokenizer: Tokenizer) -> None:
    """Bug: streaming and bits per byte lose the bytes of a character that ends in the next token."""
    ids = tokenizer.encode("a\U0001f999")
    assert len(ids) > 2
    assert tokenizer.decode_bytes(ids[:-1]) == "a\U0001f999".encode()[: len(tokenizer.decode_bytes(ids[:-1]))]
    assert tokenizer.decode(ids[:-1]) == "a\ufffd"


def test_save_and_load(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Bug: the loaded tokenizer differs, or its hash is not that of the file, so shards refuse it."""
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.hash == tokenizer.hash == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert loaded.template_hash == hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()
    assert loaded.encode_batch(ADVERSARIAL) == tokenizer.encode_batch(ADVERSARIAL)
    assert (loaded.kind, loaded.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)


def test_hashes_tell_tokenizers_apart(bpe: Tokenizer, char: Tokenizer) -> None:
    """Bug: a hash of something constant, so that a mismatch is never refused."""
    assert bpe.hash != char.hash
    assert Tokenizer(bpe.json, "{{ messages[0]['content'] }}").template_hash != bpe.template_hash


def test_truncation_left_by_another_program_is_dropped(bpe: Tokenizer, tmp_path: Path) -> None:
    """Bug: transformers saved its truncation into tokenizer.json, and every document is cut at 8 tokens."""
    stored = json.loads(bpe.json)
    stored["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    assert len(Tokenizer(json.dumps(stored)).encode("word " * 50)) == len(bpe.encode("word " * 50)) > 8


DAMAGE = {
    "empty": ("tokenizer.json", ""),
    "cut": ("tokenizer.json", '{"version": "1.0", "added_tok'),
    "not a tokenizer": ("tokenizer.json", "[]"),
    "binary": ("tokenizer.json", b"\xff\xfe\x00"),
    "config cut": ("tokenizer_config.json", '{"bos'),
    "config a list": ("tokenizer_config.json", "[]"),
    "no template": ("tokenizer_config.json", "{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folder_is_a_user_error_naming_the_file(bpe: Tokenizer, tmp_path: Path, damage: str) -> None:
    """Bug: a traceback, or a silent default (an empty chat template), instead of a word on what to do."""
    bpe.save(tmp_path)
    name, content = DAMAGE[damage]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        Tokenizer.load(tmp_path)
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_a_user_error(bpe: Tokenizer, tmp_path: Path, name: str) -> None:
    """Bug: a missing config is taken for "no template", and chat is laid out wrongly."""
    bpe.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} does not exist"):
        Tokenizer.load(tmp_path)


def test_missing_specials_are_all_named(bpe: Tokenizer) -> None:
    """Bug: another model's tokenizer is taken, and <|end|> is None in every mask."""
    stored = json.loads(bpe.json)
    stored["added_tokens"] = stored["added_tokens"][:4]
    with pytest.raises(UserError, match=r"(?s)2 problems.*<\|system\|>.*<\|end\|>"):
        Tokenizer(json.dumps(stored))


# ---- the same folder in transformers ----


@pytest.mark.parametrize("model_type", [None, "llama", "qwen3", "gpt2"])
def test_transformers_agrees(tokenizer: Tokenizer, tmp_path: Path, model_type: str | None) -> None:
    """Bug: the exported folder opens as another tokenizer class (Metaspace, added spaces, stripped spaces)."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    if model_type:  # as in an export: config.json beside it must not choose the class
        config = {"model_type": model_type, "vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 1}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ORDINARY:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 1)
    assert sorted(theirs.all_special_ids) == list(range(6)) and len(theirs) == tokenizer.vocab_size
    # transformers 4 adds token_type_ids, which decoders refuse, unless the folder names its inputs
    stored = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert stored["model_input_names"] == ["input_ids", "attention_mask"] == list(theirs("a"))
    assert theirs.decode([3, *tokenizer.encode("hi"), 5], skip_special_tokens=True) == "hi"


def test_folder_saved_again_by_transformers_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Bug: transformers moves the template to chat_template.jinja, and the way back loses it."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "a")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    again = Tokenizer.load(tmp_path / "b")
    assert again.template_hash == tokenizer.template_hash
    assert again.encode_batch(ADVERSARIAL) == tokenizer.encode_batch(ADVERSARIAL)
