"""A tokenizer folder as GGUF's metadata, and every way in which llama.cpp would cut text otherwise.

llama.cpp does not read the regex a tokenizer cuts text with: it knows some by name (`tokenizer.ggml.pre`). So a
tokenizer travels only when its cuts are one of those. What stands behind the names: llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup.errors import UserError
from groundup.model.interchange.gguf_pieces import piece_fields

BOS, EOS, END = "<|begin_of_text|>", "<|end_of_text|>", "<|end|>"
# token types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The regex a tokenizer.json cuts with -> its name.
PRE_TOKENIZERS = {
    _GPT4.replace("DIGITS", r"\p{N}"): "qwen2",
    _GPT4.replace("DIGITS", r"\p{N}{1,3}"): "dbrx",
    _GPT2: "gpt-2",
}


@dataclass
class GgufTokenizer:
    """`fields` are metadata; `differences` what keeps ids from being equal, `notes` where they differ on rare text."""

    fields: dict[str, Any]
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gguf_tokenizer(folder: Path, vocab_size: int, tokens: dict[str, int | None] | None = None) -> GgufTokenizer:
    """The tokenizer of a folder in Hugging Face's format, for a model with `vocab_size` rows.

    tokens: ids of bos, eos and end (what closes a turn) where the folder's names are not enough; None = no such token.
    Raises UserError when it cannot be read, is not the model's, or is of a kind that GGUF has no form for.
    """
    content, config = _read(folder / "tokenizer.json"), _read(folder / "tokenizer_config.json", needed=False)
    try:
        texts, types = _vocabulary(content, vocab_size)
        ids = _special_ids(content, config, tokens or {}, vocab_size)
        if '"ByteLevel"' in json.dumps(content["pre_tokenizer"]):
            found = _bytes_fields(content)
        else:
            found = GgufTokenizer(*piece_fields(content, texts, types))
    except UserError as error:
        raise UserError(f"{folder / 'tokenizer.json'}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder / 'tokenizer.json'} cannot be read as a tokenizer ({error!r}): give the folder that holds it"
        ) from error
    if len(set(texts)) != len(texts):
        raise UserError(f"{folder / 'tokenizer.json'}: two tokens have the same text, which GGUF cannot tell apart")
    found.notes += [
        f'"{token["content"]}" takes spaces beside it away, which llama.cpp does not do'
        for token in content["added_tokens"]
        if token.get("lstrip") or token.get("rstrip")
    ]
    if beyond := [t["content"] for t in content["added_tokens"] if int(t["id"]) >= vocab_size]:
        found.notes.append(f"{', '.join(beyond)}: beyond the model's rows, left out")
    if spare := types.count(UNUSED):
        found.notes.append(f"{spare} rows of the model have no token: llama.cpp can draw them, groundup never does")
    found.fields = {
        **found.fields,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        **ids,
    }
    if template := _template(folder, config):
        found.fields["tokenizer.chat_template"] = template
    return found


def _read(path: Path, needed: bool = True) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        if not needed:
            return {}
        raise UserError(f"{path} does not exist: give the folder that holds the tokenizer") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the folder that holds the tokenizer") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a tokenizer: give the folder that holds it")
    return content


def _vocabulary(content: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and type of every row. TRAP: llama.cpp takes the number of texts for the model's vocabulary, so rows that no
    token has are filled up. CONTROL is never printed and never made from plain text; llama.cpp stops at none but these.
    """
    if content["model"]["type"] != "BPE":
        raise UserError(f"its model is {content['model']['type']}: GGUF files are written for BPE alone")
    added = {int(token["id"]): token for token in content["added_tokens"]}
    by_id = {i: text for text, i in content["model"]["vocab"].items()} | {i: t["content"] for i, t in added.items()}
    by_id = {i: text for i, text in by_id.items() if i < vocab_size or not _spare(added.get(i))}
    if by_id and max(by_id) >= vocab_size:
        raise UserError(
            f"its ids reach {max(by_id)}, the model's vocabulary is {vocab_size}: is it this model's tokenizer?"
        )
    unknown = content["model"].get("unk_token")
    bytewise = content["model"].get("byte_fallback")
    texts, types = [], []
    for i in range(vocab_size):
        text = by_id.get(i, f"[PAD{i}]")
        if i not in by_id:
            kind = UNUSED
        elif text == unknown:
            kind = UNKNOWN
        elif i in added:
            kind = CONTROL if added[i]["special"] else USER_DEFINED
        else:
            kind = BYTE if bytewise and len(text) == 6 and text.startswith("<0x") and text.endswith(">") else NORMAL
        texts.append(text)
        types.append(kind)
    return texts, types


def _spare(token: dict[str, Any] | None) -> bool:
    """Whether a token may stand beyond the model's rows: a special that only the tokenizer has ([PAD])."""
    return token is not None and bool(token["special"])


def _special_ids(
    content: dict[str, Any], config: dict[str, Any], tokens: dict[str, int | None], vocab_size: int
) -> dict[str, Any]:
    """bos, eos, end of turn, padding, and whether a BOS is put before text.

    TRAP: where a file says nothing, llama.cpp takes ids of its own (11 for byte-level BPE), so every one is written.
    """
    by_name = content["model"]["vocab"] | {token["content"]: int(token["id"]) for token in content["added_tokens"]}
    own = {BOS, EOS, END} <= set(by_name)
    named = {key: by_name.get(_name(config.get(f"{key}_token"))) for key in ("bos", "eos", "pad")}
    if own:
        named |= {"bos": by_name[BOS], "eos": by_name[EOS], "end": by_name[END]}
    named |= tokens
    if named.get("eos") is None:
        raise UserError("no eos_token is named, so nothing would end a text: name it in tokenizer_config.json")
    bos, eos, end = named.get("bos"), named["eos"], named.get("end")
    if (last := max(i for i in (bos, eos, end) if i is not None)) >= vocab_size:
        raise UserError(f"its special ids reach {last}, the model's vocabulary is {vocab_size}: is it this model's?")
    pad = named.get("pad")
    pad = eos if pad is None or pad >= vocab_size else pad
    puts_bos = bos is not None and (own or _puts_bos(content, config, bos))
    ids = {
        "tokenizer.ggml.bos_token_id": eos if bos is None else bos,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.padding_token_id": pad,
        "tokenizer.ggml.add_bos_token": puts_bos,
        "tokenizer.ggml.add_eos_token": False,
    }
    if end is not None:
        ids["tokenizer.ggml.eot_token_id"] = end
    return ids


def _name(token: Any) -> str:
    """A token's text in tokenizer_config.json: a string, or an object with its flags; "" where there is none."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def _puts_bos(content: dict[str, Any], config: dict[str, Any], bos: int) -> bool:
    """Whether transformers puts a BOS before a text: add_bos_token, or else the post-processor, says so."""
    if config.get("add_bos_token") is not None:
        return bool(config["add_bos_token"])
    steps = _steps(content.get("post_processor"), "processors")
    first = [step["single"][0] for step in steps if step["type"] == "TemplateProcessing" and step["single"]]
    names = {int(token["id"]): token["content"] for token in content["added_tokens"]}
    return any(part.get("SpecialToken", {}).get("id") == names.get(bos, bos) for part in first)


def _steps(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or post-processor as the list of its steps."""
    if part is None:
        return []
    steps: list[dict[str, Any]] = part[inside] if part["type"] == "Sequence" else [part]
    return steps


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    jinja = folder / "chat_template.jinja"  # transformers 5 prefers it
    template = jinja.read_text(encoding="utf-8") if jinja.exists() else config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {one.get("name"): one.get("template") for one in template}.get("default")
    return template if isinstance(template, str) else None


def _bytes_fields(content: dict[str, Any]) -> GgufTokenizer:
    """Byte-level BPE (GPT-2's kind)."""
    model = content["model"]
    pre, differences = _pre_tokenizer(content["pre_tokenizer"])
    if model.get("ignore_merges"):  # words that are tokens are taken whole; Llama 3's does so
        if pre == "dbrx":
            pre = "llama-bpe"
        else:
            differences.append(f"ignore_merges is true, which llama.cpp's {pre} is without")
    differences += [
        f"{key} is {model[key]!r}, which llama.cpp's BPE is without"
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    ]
    notes = []
    for step in _steps(content.get("normalizer"), "normalizers"):
        if step["type"] in ("NFC", "NFKC", "NFD", "NFKD"):
            notes.append(f"text is normalised ({step['type']}) first, which llama.cpp does not do: give it such text")
        else:
            differences.append(f"text is normalised ({step['type']}) first, which llama.cpp does not do")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not merges:
        raise UserError(
            "it has learned no merges, and llama.cpp opens no byte-level BPE without: raise tokenizer.vocab_size"
        )
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}
    return GgufTokenizer(fields, differences, notes)


def _pre_tokenizer(part: dict[str, Any]) -> tuple[str, list[str]]:
    """(llama.cpp's name for the cuts, what is different)."""
    steps = _steps(part, "pretokenizers")
    if steps[-1].get("add_prefix_space"):
        return "default", ["a space is put before every text, which llama.cpp's byte-level BPE does not do"]
    cuts, by_regex = steps[:-1], steps[-1].get("use_regex", True)
    if not cuts and by_regex:
        return "gpt-2", []
    if len(cuts) == 1 and by_regex and cuts[0] == {"type": "Digits", "individual_digits": True}:
        return "smollm", []
    if len(cuts) == 1 and not by_regex and cuts[0]["type"] == "Split":
        regex = cuts[0]["pattern"].get("Regex")
        if cuts[0]["behavior"] == "Isolated" and not cuts[0].get("invert") and regex in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[regex], []
    return "default", [f"text is cut by {json.dumps(part, ensure_ascii=False)}, which llama.cpp knows no name for"]
