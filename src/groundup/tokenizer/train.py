"""Train a tokenizer: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), or one token a character.

Both hold every byte, so any text can be encoded, and both put the special tokens at ids 0..5. The same texts
give the same bytes of tokenizer.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from groundup.errors import UserError
from groundup.recipe.schema import TokenizerSection
from groundup.tokenizer.tokenizer import SPECIALS, Tokenizer, text_problem

N_BYTES = 256
SMALLEST = len(SPECIALS) + N_BYTES  # vocabulary of a tokenizer that has learned nothing
# The library counts pairs of symbols in 32 bits: past this much text, the counts could wrap around.
MOST_SAMPLE_BYTES = 2_000_000_000


def split_pattern(split_digits: bool) -> str:
    """Regex of the pieces that BPE never merges across: words, numbers, punctuation, white space.

    GPT-4's pattern in the form Llama 3 (three digits) and Qwen 2 (single digits) use, kept to the letter so
    that GGUF's `dbrx` and `qwen2` pre-tokenizers cut text as it was cut in training.
    """
    digits = r"\p{N}" if split_digits else r"\p{N}{1,3}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"
        rf"|{digits}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def train_tokenizer(section: TokenizerSection, texts: Iterable[str]) -> Tokenizer:
    """Train on the first `section.sample_bytes` bytes of `texts`.

    Raises UserError when there is no text, when the vocabulary asked for cannot hold the bytes and specials,
    and when the text is too small to give it (naming the largest that it can).
    """
    if section.sample_bytes > MOST_SAMPLE_BYTES:
        raise UserError(
            f"tokenizer.sample_bytes: {section.sample_bytes:,} is more than the {MOST_SAMPLE_BYTES:,} "
            "that pairs can be counted in: set it lower (50M is plenty)"
        )
    if section.vocab_size != "auto" and section.vocab_size < SMALLEST:
        raise UserError(
            f"tokenizer.vocab_size: {section.vocab_size} is too small: {len(SPECIALS)} special tokens and "
            f"{N_BYTES} bytes come first, so give at least {SMALLEST}"
        )
    sample = _sample(texts, section.sample_bytes)
    return _train_char(section, sample) if section.kind == "char" else _train_bpe(section, sample)


def char_vocab_size(section: TokenizerSection, texts: Iterable[str]) -> int:
    """Size that `kind: char` comes out at when vocab_size is auto; reads the same sample as training does."""
    return SMALLEST + len({character for text in _sample(texts, section.sample_bytes) for character in set(text)})


def _sample(texts: Iterable[str], budget: int) -> Iterator[str]:
    """The texts up to `budget` bytes, the last cut at a whole character. UserError if all are empty."""
    given = 0
    for n, text in enumerate(texts):
        if problem := text_problem(text):
            raise UserError(f"tokenizer: text {n}: {problem}")
        data = text.encode()
        if len(data) > budget - given:
            text = data[: budget - given].decode("utf-8", errors="ignore")
            data = data[: budget - given]
        given += len(data)
        if text:
            yield text
        if given >= budget:
            return
    if given == 0:
        raise UserError("tokenizer: the corpus is empty, there is nothing to train on: check data.sources")


def _special_tokens() -> list[AddedToken]:
    # No stripping: "<|end|> x" keeps its space. Not normalized: matched in the raw template text.
    return [AddedToken(s, special=True, normalized=False, lstrip=False, rstrip=False) for s in SPECIALS]


def _train_bpe(section: TokenizerSection, sample: Iterator[str]) -> Tokenizer:
    if section.vocab_size == "auto":
        raise UserError("tokenizer.vocab_size: is still auto: `groundup plan` resolves it, or give a number")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(section.split_digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.vocab_size,
        min_frequency=2,  # a pair seen once is not a pattern
        special_tokens=_special_tokens(),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256, seen or not
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer=trainer)
    _require(section.vocab_size, backend.get_vocab_size())
    return Tokenizer(backend.to_str(pretty=True))


def _train_char(section: TokenizerSection, sample: Iterator[str]) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in sample:
        counts.update(text)
    room = len(counts) if section.vocab_size == "auto" else section.vocab_size - SMALLEST
    _require(SMALLEST + room, SMALLEST + len(counts))
    kept = sorted(counts, key=lambda c: (-counts[c], c))[:room]  # the rest is spelled in bytes
    tokens = [*SPECIALS, *(f"<0x{b:02X}>" for b in range(N_BYTES)), *sorted(kept)]
    vocab = {token: i for i, token in enumerate(tokens)}
    # BPE without merges: one token a character. Text "<0x41>" stays six characters, for nothing merges them.
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.add_special_tokens(_special_tokens())
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return Tokenizer(backend.to_str(pretty=True))


def _require(asked: int, largest: int) -> None:
    if asked > largest:
        raise UserError(
            f"tokenizer.vocab_size: {asked:,} is more than this corpus can give: the largest possible is "
            f"{largest:,}. Set tokenizer.vocab_size to {largest} or less, or give more text"
        )
