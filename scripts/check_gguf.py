"""A .gguf file against the model it was made of: tokens, logits and greedy text of llama.cpp and of groundup's engine.

    python scripts/check_gguf.py runs/town town-q8_0.gguf --stage sft

Needs llama-cpp-python. Our engine runs the weights as the file stores them, so what is left is how llama.cpp computes:
it multiplies 16-bit and quantized matrices by activations it has rounded too. Prints a table; exit code 1 when ids
differ, logits differ by more than the file's type explains, or greedy text differs where it was not a tie.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize

from groundup.errors import UserError
from groundup.infer.engine import Engine, SamplingParams
from groundup.model.interchange.gguf_layout import LAYOUTS, layout_of, renamed
from groundup.model.storage import load_model, model_tensors
from groundup.model.transformer import Transformer
from groundup.runs import open_run, pick
from groundup.tokenizer.chat import render
from groundup.tokenizer.tokenizer import Tokenizer

# Largest difference of a logit, as a share of the spread of the logits at its place.
TOLERANCE = {"F32": 1e-3, "F16": 5e-3, "BF16": 4e-2, "Q8_0": 4e-2, "Q4_0": 4e-2}
HARD_TEXTS = [
    " ",
    "   leading",
    "trailing   ",
    "a  b \t c",
    " \n  \n\n x\r\n\r\n\ty\n",
    "0 12 345 6789 1234567890 3.14159 1,000,000",
    "x1y22z333",
    "don't I'LL we'Ve it's 'tis 's'S'T",
    "!!! ???...\n\n--==>",
    "def f(x):\n    return x+1\n\n\n",
    "Ana Müller wohnt in Köln, ŁÓDŹ; Ελληνικά, кириллица.",
    "日本語テキスト 한국어 中文",
    "e\u0301 \u0301 \u0301",
    "👩‍👩‍👧 🇩🇪 👍🏽",
    "\u202eabc\u202c \ufeffz \u00a0\u2003x\u3000y \u2028b\u2029c\x85d\x0b\x0c",
    "½ ² ① Ⅻ ٣٤ ४",
    "\x00\x01\x7f",
    "<0x41> <s> </s> [INST]",
    "<|end|>",
    "a<|user|>b<|end_of_text|>",
]
PROMPTS = [
    "Once upon a time",
    "The",
    "In the morning",
    "Hello",
    "12 + 30 =",
    "She said that",
    "There is a",
    "def main():",
    "A list of things:\n1.",
    "Who",
]
QUESTIONS = [
    "Who are you?",
    "What is 2+3?",
    "Tell me a story.",
    "Where do you live?",
    "What is the capital of France?",
    "Hi!",
    "Repeat the word blue.",
    "Why is the sky blue?",
    "Write a line of code.",
    "Count to five.",
]


@dataclass
class Row:
    """One line of the table."""

    what: str
    checked: int
    found: str
    sound: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, or its name below --runs")
    parser.add_argument("file", type=Path, help="the .gguf file")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--stage", help="base, sft, dpo or grpo; default: the last one made")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="text file, a line each: a text to go on from, and a question; default: ten of either",
    )
    parser.add_argument("--tokens", type=int, default=40, help="to be generated for each prompt")
    args = parser.parse_args()
    try:
        pipeline = open_run(args.run, args.runs)
        name, folder = pick(pipeline, args.stage)
        lines = args.prompts.read_text(encoding="utf-8").splitlines() if args.prompts else []
        rows = compare(load_model(folder), pipeline.ctx.tokenizer(), args.file, [x for x in lines if x], args.tokens)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.file} against the {name} model of {args.run}")
    print(f"{'':2} {'what':34} {'checked':>8}  found")
    for row in rows:
        print(f"{'ok' if row.sound else 'NO'} {row.what:34} {row.checked:>8,}  {row.found}")
    sys.exit(0 if all(row.sound for row in rows) else 1)


def compare(
    model: Transformer, tokenizer: Tokenizer, file: Path, prompts: list[str] | None = None, n_tokens: int = 40
) -> list[Row]:
    """The table, for a model in fp32 on the CPU. TRAP: `model` then holds the weights as the file rounds them."""
    import llama_cpp

    types = stored_types(file)
    matrix = types["blk.0.ffn_down.weight"] if "blk.0.ffn_down.weight" in types else types["blk.0.ffn_down_exps.weight"]
    round_as_stored(model, types)
    context = min(model.config.context, 1024)
    n_tokens = min(n_tokens, context // 2)
    # keys and values in fp32 (type 0), or they alone would make a difference
    llama = llama_cpp.Llama(
        str(file),
        n_ctx=context,
        n_batch=context,
        logits_all=True,
        type_k=0,
        type_v=0,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
    )
    try:
        engine = Engine(model, tokenizer)
        plain = [tokenizer.prefix + tokenizer.encode(text) or [tokenizer.start] for text in prompts or PROMPTS]
        chats = [engine.chat_prompt([{"role": "user", "content": text}]) for text in prompts or QUESTIONS]
        ids = [p[: context - n_tokens] for p in plain + chats]
        return [
            _ids(llama, tokenizer, [*HARD_TEXTS, *PROMPTS, *QUESTIONS, *(prompts or [])]),
            _pieces(llama, llama_cpp, tokenizer),
            _conversations(llama, tokenizer),
            _stops(llama, llama_cpp, tokenizer),
            *_logits_and_text(llama, llama_cpp, engine, ids, n_tokens, TOLERANCE[matrix]),
        ]
    finally:
        llama.close()


def stored_types(file: Path) -> dict[str, str]:
    """Name of each tensor -> the type it is stored in."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


def round_as_stored(model: Transformer, types: dict[str, str]) -> None:
    """Give every weight the value that a reader gets. Rows are permuted or cut apart there, never mixed."""
    arch = LAYOUTS[layout_of(model.config)].arch
    for name, tensor in model_tensors(model).items():
        kind = gguf.GGMLQuantizationType[types[next(renamed(name, tensor, model, arch))[0]]]
        tensor.copy_(torch.from_numpy(dequantize(quantize(tensor.float().numpy(), kind), kind).astype(np.float32)))


def _ids(llama: Any, tokenizer: Tokenizer, texts: list[str]) -> Row:
    bad = [t for t in texts if llama.tokenize(t.encode(), add_bos=False, special=False) != tokenizer.encode(t)]
    return Row("token ids of text", len(texts), _few(bad), not bad)


def _pieces(llama: Any, llama_cpp: Any, tokenizer: Tokenizer) -> Row:
    """Text of each id; specials must be silent, or "<|end|>" is printed at the end of every answer."""
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    buffer = ctypes.create_string_buffer(4096)

    def piece(i: int) -> bytes:
        length = llama_cpp.llama_token_to_piece(vocabulary, i, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    bad = [i for i in range(tokenizer.vocab_size) if piece(i) != tokenizer.token_bytes(i)]
    return Row("text of every id", tokenizer.vocab_size, _few(bad), not bad)


def _conversations(llama: Any, tokenizer: Tokenizer) -> Row:
    """The file's own template, as llama-cpp-python renders it, and its specials read back."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(i: int) -> str:
        return tokenizer.decode([i], skip_specials=False)

    form = Jinja2ChatFormatter(
        llama.metadata["tokenizer.chat_template"], bos_token=text(tokenizer.start), eos_token=text(tokenizer.eos)
    )
    turns = [{"role": "user", "content": "Hi, 12 x"}, {"role": "assistant", "content": " yes\n"}]
    given = [[{"role": "user", "content": question}] for question in QUESTIONS]
    given += [[*turns, {"role": "user", "content": "And then?"}]]
    bad = [
        messages
        for messages in given
        if llama.tokenize(form(messages=messages).prompt.encode(), add_bos=False, special=True)
        != render(tokenizer, messages, add_generation_prompt=True).ids
    ]
    return Row("token ids of conversations", len(given), _few(bad), not bad)


def _stops(llama: Any, llama_cpp: Any, tokenizer: Tokenizer) -> Row:
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ends = sorted({tokenizer.end, tokenizer.eos})
    bad = [i for i in ends if not llama_cpp.llama_vocab_is_eog(vocabulary, i)]
    return Row("ids that end a text", len(ends), _few(bad), not bad)


def _logits_and_text(
    llama: Any, llama_cpp: Any, engine: Engine, prompts: list[list[int]], n_tokens: int, tolerance: float
) -> list[Row]:
    params = SamplingParams(
        temperature=0, max_new_tokens=n_tokens, stop_ids=(engine.tokenizer.end, engine.tokenizer.eos)
    )
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    worst, shares, n_places, ties, bad = 0.0, [0.0], 0, 0, []
    for prompt, ours in zip(prompts, engine.generate(prompts, params), strict=True):
        theirs: list[int] = []
        llama.reset()
        llama.eval(prompt)
        while len(theirs) < n_tokens:
            # our engine never draws a row of the model that no token has; llama.cpp might
            theirs.append(int(llama.scores[llama.n_tokens - 1, : engine.tokenizer.vocab_size].argmax()))
            if llama_cpp.llama_vocab_is_eog(vocabulary, theirs[-1]) or len(theirs) == n_tokens:
                break
            llama.eval([theirs[-1]])
        whole = [*prompt, *theirs][: llama.n_tokens]
        with torch.inference_mode():
            logits = engine.model.logits(engine.model(torch.tensor([whole])))[0]
        off = (logits - torch.from_numpy(llama.scores[: len(whole)].copy())).abs().amax(-1)
        spread = logits.amax(-1) - logits.amin(-1)
        worst, n_places = max(worst, float(off.max())), n_places + len(whole)
        shares.append(float((off / spread).max()))
        if theirs != ours.ids:
            if _is_tie(logits[len(prompt) - 1 :], theirs, ours.ids, 2 * tolerance):
                ties += 1
            else:
                bad.append(ours.text)
    share = max(shares)
    same = f"{len(prompts) - ties - len(bad)} equal" + (f", {ties} part where two tokens are as good" if ties else "")
    return [
        Row("logits", n_places, f"differ by up to {worst:.1e}, {share:.1e} of their spread", share <= tolerance),
        Row(f"greedy text, {n_tokens} tokens", len(prompts), f"{same}; {_few(bad)}" if bad else same, not bad),
    ]


def _is_tie(logits: torch.Tensor, theirs: list[int], ours: list[int], share: float) -> bool:
    """Whether, where two texts part, their tokens' logits are no further apart than this share of the spread."""
    for at, a, b in zip(logits, theirs, ours, strict=False):
        if a != b:
            return bool((at[b] - at[a]).abs() <= share * (at.max() - at.min()))
    return False


def _few(bad: list[Any]) -> str:
    return f"{len(bad)} differ, first {ascii(bad[0])[:60]}" if bad else "equal"


if __name__ == "__main__":
    main()
