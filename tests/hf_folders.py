"""Small tokenizers and checkpoints in Hugging Face's format, of the kinds that other people's models come in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What the published templates do, each in a few lines.
TURNS = "{% for m in messages %}"
TEMPLATES = {
    # a system prompt is put in where there is none; line ends after roles and turns
    "chatml": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
    + TURNS
    + "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # contents are trimmed
    "llama3": "{{ bos_token }}"
    + TURNS
    + "{{ '<|im_start|>' + m['role'] + '|\\n\\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant|\\n\\n' }}{% endif %}",
    # the system prompt is a part of the first question; spaces around contents; nothing is added to be continued
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + "
    "'\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
    "m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}",
    # roles renamed, no system message
    "gemma": "{{ bos_token }}"
    + TURNS
    + "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim + "
    "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}",
    # reasoning is kept in the last answer alone, and an empty one is written where there is none
    "qwen3": TURNS + "{% set content = m['content'] %}{% set reasoning = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # the answer is marked for transformers' own mask; the date is written
    "dated": "{{ bos_token }}{{ '<|im_start|>system\\nToday: ' + strftime_now('%d %b %Y') + '<|im_end|>' }}"
    + TURNS
    + "{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}
MARKS = ("<|im_start|>", "<|im_end|>")


def corpus() -> list[str]:
    library = Path(os.__file__).parent
    texts = [
        (library / name).read_text(encoding="utf-8") for name in ("bisect.py", "heapq.py", "textwrap.py", "abc.py")
    ]
    return [*texts, "Pick a number from 1 to 4. Give me any number, please. [INST] [/INST] user assistant\n" * 20]


def special(*names: str, **flags: bool) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False, **flags) for name in names]


def byte_level(*specials: str, size: int = 420, marks: list[AddedToken] | None = None, puts: str = "") -> Backend:
    """GPT-2's kind. `puts`: the token that a post-processor sets before every text."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens(special(*specials, *(MARKS if marks is None else ())))
    backend.add_special_tokens(marks or [])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    steps: list[Any] = [processors.ByteLevel(trim_offsets=True)]
    if puts:
        steps.append(processors.TemplateProcessing(f"{puts} $A", f"{puts} $A $B", [(puts, backend.token_to_id(puts))]))
    backend.post_processor = processors.Sequence(steps)
    return backend


def sentencepiece(scheme: str = "legacy", size: int = 500, marks: list[AddedToken] | None = None) -> Backend:
    """Llama 2's kind: U+2581 for a space, bytes where no piece fits, <s> put first.

    scheme: "legacy" (a space before every stretch of text), "first" (before the first alone) or "never" (Gemma).
    """
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=size - 259, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    # as in the published vocabularies, control pieces stand among the others, and their letters can merge into them
    extra = [p for p in ("</", "s>", "<", "/", "s", ">", "\u2581") if p not in learned["vocab"]]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *learned["vocab"], *extra]
    merges = [tuple(m) for m in learned["merges"]] + [("<", "/"), ("s", ">"), ("</", "s>")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend("\u2581")] if scheme == "legacy" else []
        backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    tail = [] if scheme == "never" else [decoders.Strip(content=" ", left=1, right=0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    backend.add_special_tokens(special("<unk>", "<s>", "</s>", *(MARKS if marks is None else ())))
    backend.add_special_tokens(marks or [])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", vocab["<s>"])])
    return backend


def write_tokenizer(folder: Path, backend: Backend, template: str | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    whole = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    if template is not None:
        whole["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(whole))
    return folder


def kinds() -> dict[str, tuple[Backend, dict[str, Any]]]:
    """Name -> (tokenizer, what its tokenizer_config.json says of special tokens)."""
    end = {"eos_token": "<|im_end|>"}
    phi3 = special("<|im_start|>") + special("<|im_end|>", rstrip=True)
    llama2 = {"bos_token": "<s>", "eos_token": "</s>"}
    return {
        "qwen": (byte_level("<|endoftext|>"), {"bos_token": None, **end}),
        "gpt2": (byte_level("<|endoftext|>"), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
        "llama3": (byte_level("<|bot|>", puts="<|bot|>"), {"bos_token": "<|bot|>", **end}),
        "llama2": (sentencepiece(), llama2),
        "mistral": (sentencepiece("first"), llama2),
        "gemma": (sentencepiece("never"), {"bos_token": "<s>", **end}),
        "phi3": (sentencepiece(marks=phi3), {"bos_token": "<s>", **end}),
    }
