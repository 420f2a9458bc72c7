"""A Hugging Face folder: do its weights, its configs, its tokenizer and its template belong together?

Each is handed a `folders.Checkpoint`. Most look at files alone; those that need transformers do not apply without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer as Backend

from groundup.model.interchange.families import FAMILIES
from groundup.tokenizer.foreign import name_of
from groundup.verify.check import Measurement, NotApplicable, also, check, violations
from groundup.verify.checks.any_tokenizer import TEXTS
from groundup.verify.folders import EMBEDDINGS, HEADS, Checkpoint
from groundup.verify.outside import OutsideTokenizer, Refused

ROLES = ("bos", "eos", "pad")
UNLIMITED = 10**9  # what tokenizers claim that know no length (transformers writes 10^30)


def _tokenizer(checkpoint: Checkpoint) -> OutsideTokenizer:
    if checkpoint.tokenizer is None:
        raise NotApplicable("the folder holds no tokenizer")
    return checkpoint.tokenizer


def _ids(given: Any) -> set[int]:
    """Ids that a config states: one, several, or none."""
    return {i for i in (given if isinstance(given, list) else [given]) if isinstance(i, int)}


# ---- tokenizer and vocabulary ----


@check(
    "rows-cover-the-tokenizer",
    "identity",
    "export",
    bug="The tokenizer has ids that the embedding has no row for, or config.json another vocabulary than the weights.",
    remedy="resize_token_embeddings after adding tokens, before training; save model and tokenizer together.",
    reference="sillsdev/silnlp issue 1033; kongds/E5-V issue 7; huggingface/tokenizers issue 1609",
    looks_at="checkpoint",
)
def rows_cover_the_tokenizer(checkpoint: Checkpoint) -> Measurement:
    """Ids of the tokenizer without a row (of embedding and head, and of vocab_size); also rows that differ between
    vocab_size, embedding and head. Exact. Rows more than ids are padding, and are counted in the note.
    """
    vocab, size = checkpoint.config.get("vocab_size"), _tokenizer(checkpoint).size
    rows = {"vocab_size": vocab} if isinstance(vocab, int) else {}
    for what, names in (("embedding", EMBEDDINGS), ("head", HEADS)):
        if (name := checkpoint.stored(names)) is not None:
            rows[what] = checkpoint.tensors[name][1].shape[0]
    if not rows:
        raise NotApplicable("neither weights nor vocab_size")
    short = max(0, size - min(rows.values()))
    uneven = max(rows.values()) - min(rows.values())
    note = f"{', '.join(f'{what} {n:,}' for what, n in rows.items())}; tokenizer {size:,}"
    spare = min(rows.values()) - size
    return Measurement(float(short + uneven), 0.0, f"{note}; {spare:,} rows of padding" if spare > 0 else note)


@check(
    "special-ids-agree",
    "identity",
    "export",
    bug="config, generation_config and tokenizer name different bos, eos or pad: generation never stops, or at once.",
    remedy="Set all three from the tokenizer after the last token was added: model.config, model.generation_config.",
    reference="unslothai/unsloth issue 416; vllm-project/vllm issue 4180; QwenLM/Qwen3 issue 927",
    looks_at="checkpoint",
)
def special_ids_agree(checkpoint: Checkpoint) -> Measurement:
    """Disagreements: bos or pad stated twice and differently; the tokenizer's eos not among the ids that generation
    stops at (generation_config's, or else config's), or config's eos not; ids past the vocabulary. Exact.

    What is stated nowhere disagrees with nothing, but for eos: transformers' generate stops at what is stated alone.
    """
    config, generation, tokenizer = checkpoint.config, checkpoint.generation, checkpoint.tokenizer
    stated: dict[str, dict[str, set[int]]] = {role: {} for role in ROLES}
    for role in ROLES:
        for what, given in (("config", config), ("generation_config", generation)):
            if ids := _ids(given.get(f"{role}_token_id")):
                stated[role][what] = ids
        own = getattr(tokenizer, role) if tokenizer is not None else None
        if own is not None:
            stated[role]["tokenizer"] = {own}
    looked = sum(map(len, stated.values()))
    if not looked:
        raise NotApplicable("no special ids are stated")
    vocab = config.get("vocab_size")
    found = [
        f"{role} is {sorted(ids)} in {what}, of {vocab} ids"
        for role, by in stated.items()
        for what, ids in by.items()
        if isinstance(vocab, int) and not all(0 <= i < vocab for i in ids)
    ]
    for role in ("bos", "pad"):
        if len({frozenset(ids) for ids in stated[role].values()}) > 1:
            found.append(f"{role} is " + ", ".join(f"{sorted(ids)} in {what}" for what, ids in stated[role].items()))
    ends = stated["eos"]
    stops = ends.get("generation_config", ends.get("config", set()))
    for what in ("tokenizer", "config"):
        if what in ends and not ends[what] & stops:
            found.append(f"eos is {sorted(ends[what])} in {what}, and generation stops at {sorted(stops) or 'nothing'}")
    return violations(found, looked)


@also("terminator-stops", "checkpoint")
def terminator_stops(checkpoint: Checkpoint) -> Measurement:
    """1 where the token that ends an assistant's turn in the template is not among generation_config's eos_token_id
    (config's where there is none), else 0. Exact: it is what transformers, vLLM and others stop at.
    """
    tokenizer = _tokenizer(checkpoint)
    if tokenizer.template is None:
        raise NotApplicable("there is no chat template")
    try:
        end = tokenizer.terminator()
    except Refused as error:
        raise NotApplicable(f"the template refuses a question and an answer ({error})") from error
    stated = checkpoint.generation.get("eos_token_id")
    stops = _ids(stated if stated is not None else checkpoint.config.get("eos_token_id"))
    if end is None:
        return violations(["the template writes no special token after an answer"], 1)
    return violations([] if end in stops else [f"an answer ends with {end}, generation stops at {sorted(stops)}"], 1)


@check(
    "template-tokens-are-trained",
    "sensitivity",
    "export",
    bug="The template uses special tokens whose rows were never trained: all alike, the model cannot tell them apart.",
    remedy="Train embedding and head too, or use a template of tokens that the base model knows.",
    reference="meta-pytorch/torchtune issue 2429; unslothai/unsloth issues 658, 1056",
    looks_at="checkpoint",
)
def template_tokens_are_trained(checkpoint: Checkpoint) -> Measurement:
    """Special tokens in the template's own text whose embedding row, or head row, is zero or another special's.

    Another's: they differ by no more than the storage's rounding of a row of that length, eps * |row|; rows that were
    trained, or drawn at random, differ by about sqrt(2) |row|. Rows set to one mean, as new ones often are, fail.
    """
    tokenizer = _tokenizer(checkpoint)
    checkpoint.weights()
    if tokenizer.template is None:
        raise NotApplicable("there is no chat template")
    messages = [{"role": role, "content": "words"} for role in ("user", "assistant", "user", "assistant")]
    try:
        text = tokenizer.render(messages)
    except Refused as error:
        raise NotApplicable(f"the template refuses questions and answers ({error})") from error
    names = sorted(set(tokenizer.marker_pattern.findall(text)))
    if not names:
        raise NotApplicable("the template writes no special tokens")
    found, looked = [], 0
    for names_of, what in ((EMBEDDINGS, "embedding"), (HEADS, "head")):
        if (stored := checkpoint.stored(names_of)) is None:
            continue
        matrix = checkpoint.tensor(stored)
        rows = {n: matrix[i].double() for n in names if (i := tokenizer.markers[n]) < len(matrix)}
        looked += len(rows)
        eps = torch.finfo(matrix.dtype).eps if matrix.is_floating_point() else 0.0
        for n, (name, row) in enumerate(rows.items()):
            twin = next((o for o in list(rows)[:n] if float((rows[o] - row).norm()) <= eps * float(row.norm())), None)
            if not row.any():
                found.append(f"{name}: its row of the {what} is zero")
            elif twin is not None:
                found.append(f"{name}: its row of the {what} is {twin}'s")
    return violations(found, looked)


@check(
    "tokenizer-files-agree",
    "identity",
    "export",
    bug="tokenizer.json and the files beside it name different ids or flags: each library reads another tokenizer.",
    remedy="Save the tokenizer anew with one library into an empty folder, and delete what is left over.",
    reference="huggingface/transformers issues 29774, 23818, 24918",
    looks_at="checkpoint",
)
def tokenizer_files_agree(checkpoint: Checkpoint) -> Measurement:
    """Contradictions between added_tokens of tokenizer.json, added_tokens_decoder of tokenizer_config.json,
    added_tokens.json and special_tokens_map.json: a token's id, whether it is special, whether it strips white space;
    a role named differently, or named as a token that does not exist. Exact. What is left out contradicts nothing.
    """
    whole = checkpoint.json("tokenizer.json")
    if not whole:
        raise NotApplicable("the folder has no tokenizer.json")
    model = whole.get("model", {}).get("vocab", {})
    listed = {token["content"]: token for token in whole.get("added_tokens", [])}
    known = {**(model if isinstance(model, dict) else {piece: i for i, (piece, _) in enumerate(model)})}
    known |= {name: token["id"] for name, token in listed.items()}
    config, roles = checkpoint.tokenizer_config, checkpoint.json("special_tokens_map.json")
    found, looked = [], len(listed)
    for number, token in (config.get("added_tokens_decoder") or {}).items():
        looked += 1
        name = token["content"]
        if known.get(name) != int(number):
            found.append(f"{name} is {known.get(name)} in tokenizer.json, {number} in tokenizer_config.json")
        for flag in ("special", "lstrip", "rstrip"):
            if name in listed and flag in token and bool(token[flag]) != bool(listed[name].get(flag)):
                found.append(f"{name}: {flag} is {listed[name].get(flag)} in tokenizer.json, {token[flag]} beside it")
    for name, i in checkpoint.json("added_tokens.json").items():
        looked += 1
        if known.get(name) != i:
            found.append(f"{name} is {known.get(name)} in tokenizer.json, {i} in added_tokens.json")
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        said = {f: name_of(given[role]) for f, given in (("config", config), ("map", roles)) if given.get(role)}
        looked += len(said)
        if len(set(said.values())) > 1:
            found.append(
                f"{role} is {said['config']} in tokenizer_config.json, {said['map']} in special_tokens_map.json"
            )
        found += [f"{role} {name} is no token of tokenizer.json" for name in set(said.values()) if name not in known]
    return violations(found, looked)


@check(
    "tokenizer-json-is-what-loads",
    "invariance",
    "export",
    bug="transformers builds another tokenizer than tokenizer.json describes, which vLLM, TGI and candle read.",
    remedy="Save with the transformers that is served with; set tokenizer_class to PreTrainedTokenizerFast.",
    reference="huggingface/transformers issues 45812, 45920, 48206; allenai/open-instruct issue 1896",
    looks_at="checkpoint",
)
def tokenizer_json_is_what_loads(checkpoint: Checkpoint) -> Measurement:
    """Texts whose ids differ between AutoTokenizer and tokenizer.json read by the tokenizers library, as plain text and
    in a naive call (BOS or EOS added by one alone). Exact.
    """
    path, tokenizer = checkpoint.folder / "tokenizer.json", checkpoint.tokenizer
    if not path.is_file() or tokenizer is None or tokenizer.library != "transformers":
        raise NotApplicable("it is not transformers that reads a tokenizer.json here")
    raw = OutsideTokenizer.of(Backend.from_file(str(path)))
    found = [repr(t[:40]) for t in TEXTS if raw.encode(t) != tokenizer.encode(t)]
    words = [t for t in TEXTS if t and not tokenizer.marker_pattern.search(t)]
    found += [f"naively: {t[:30]!r}" for t in words if raw.encode_default(t) != tokenizer.encode_default(t)]
    return violations(found, len(TEXTS) + len(words))


@check(
    "one-chat-template",
    "identity",
    "export",
    bug="The chat template lies in two places that differ: which one is used depends on the library and its version.",
    remedy="Keep chat_template.jinja alone, or the one in tokenizer_config.json alone.",
    reference="hiyouga/LlamaFactory issues 7238, 8720; vllm-project/vllm issue 10631",
    looks_at="checkpoint",
)
def one_chat_template(checkpoint: Checkpoint) -> Measurement:
    """Different default templates among chat_template.jinja, chat_template.json and tokenizer_config.json, less one.

    Exact text, but for a line end at the very end, which Jinja takes away.
    """
    found: dict[str, str] = {}
    if (path := checkpoint.folder / "chat_template.jinja").is_file():
        found[path.name] = path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        given = checkpoint.json(name).get("chat_template")
        if isinstance(given, list):
            given = next((one.get("template") for one in given if one.get("name") == "default"), None)
        if isinstance(given, str):
            found[name] = given
    if not found:
        raise NotApplicable("there is no chat template")
    texts = {text.removesuffix("\n") for text in found.values()}
    return Measurement(float(len(texts) - 1), 0.0, ", ".join(found))


# ---- config.json ----


@check(
    "architecture-is-the-model-type",
    "identity",
    "export",
    bug="architectures and model_type name two models: transformers builds the one, vLLM and llama.cpp the other.",
    remedy="Correct the one that is wrong in config.json; save the config with the class that was trained.",
    reference="vllm-project/vllm issue 9736; OpenBMB/MiniCPM issue 241; Gadersd/llama2-burn issue 9",
    looks_at="checkpoint",
)
def architecture_is_the_model_type(checkpoint: Checkpoint) -> Measurement:
    """1 where `architectures` names a known causal language model of another model_type than `model_type`, else 0.

    By transformers' own table where it is installed, else by groundup's. Exact.
    """
    named, kind = checkpoint.config.get("architectures") or [], checkpoint.config.get("model_type")
    if not named or not isinstance(kind, str):
        raise NotApplicable("config.json leaves one of the two out")
    table = {family.architecture: {family.model_type} for family in FAMILIES.values()}
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as theirs
    except ImportError:
        pass
    else:
        for model_type, architecture in theirs.items():
            table.setdefault(str(architecture), set()).add(model_type)
    if named[0] not in table:
        raise NotApplicable(f"{named[0]} is not known here")
    right = kind in table[named[0]]
    return violations([] if right else [f"{named[0]} is {' or '.join(sorted(table[named[0]]))}, not {kind}"], 1)


@check(
    "rope-spellings-agree",
    "identity",
    "export",
    bug="rope_theta or rope_scaling says one thing, rope_parameters another: each library turns by other angles.",
    remedy="Write both spellings from one config; transformers 5 reads rope_parameters, most others the older keys.",
    reference="deepspeedai/DeepSpeed pull 8345; sgl-project/sglang pull 14745; marin-community/marin issue 7146",
    looks_at="checkpoint",
)
def rope_spellings_agree(checkpoint: Checkpoint) -> Measurement:
    """Values that differ between rope_theta, rope_scaling, rope_local_base_freq, partial_rotary_factor and what
    rope_parameters holds, and between type and rope_type. Exact; what one leaves out is not compared, but a kind of
    scaling that is named in the one and absent in the other is.
    """
    config = checkpoint.config
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    found, looked = [], 0
    for where, given in (("rope_scaling", old), ("rope_parameters", new)):
        for path, one in _nested(where, given):
            if one.get("type") is not None and one.get("rope_type") is not None:
                looked += 1
                if one["type"] != one["rope_type"]:
                    found.append(f"{path}: type is {one['type']}, rope_type is {one['rope_type']}")
    flat = {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": config.get("partial_rotary_factor")}
    if isinstance(new, dict) and (isinstance(old, dict) or flat["rope_theta"] is not None):
        whole = new.get("full_attention", new)
        local = new.get("sliding_attention") or {}
        pairs = [(key, value, whole.get(key)) for key, value in flat.items()]
        pairs.append(("rope_local_base_freq", config.get("rope_local_base_freq"), local.get("rope_theta")))
        before = {**old, "rope_type": old.get("rope_type", old.get("type"))} if isinstance(old, dict) else {}
        before = {key: value for key, value in before.items() if key not in ("type", *flat)}
        pairs += [(key, before.get(key), whole.get(key)) for key in sorted(before) if key != "rope_type"]
        pairs.append(("rope_type", _kind(before), _kind(whole)))
        looked += sum(a is not None and b is not None for _, a, b in pairs)
        found += [f"{key} is {a}, in rope_parameters {b}" for key, a, b in pairs if None not in (a, b) and a != b]
    if not looked:
        raise NotApplicable("its positions are spelled in one way alone, or not by RoPE")
    return violations(found, looked)


def _kind(rope: Mapping[str, Any]) -> str:
    """The kind of scaling, under its name of today; Qwen's mrope turns text as no scaling does."""
    said = str(rope.get("rope_type") or "default")
    return {"mrope": "default", "su": "longrope"}.get(said, said)


def _nested(where: str, given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A RoPE object, or those of the kinds of layers that it holds."""
    if isinstance(given, dict):
        yield where, given
        for key, value in given.items():
            yield from _nested(f"{where}.{key}", value)


@check(
    "length-claims-agree",
    "identity",
    "export",
    bug="The tokenizer lets texts through that are longer than the model has positions for: nonsense past the end.",
    remedy="Set model_max_length to max_position_embeddings, or write the RoPE scaling that reaches as far.",
    reference="martin-conur/quackformers pull 83; waybarrios/vllm-mlx pull 626; huggingface/transformers issue 30211",
    looks_at="checkpoint",
)
def length_claims_agree(checkpoint: Checkpoint) -> Measurement:
    """Tokens by which model_max_length, or a learned table's rows, go past what config.json provides. Exact.

    Provided: max_position_embeddings (n_positions), or original_max_position_embeddings * factor of the RoPE scaling
    where that is more. A learned table must have just as many rows. Qwen 2.5's instruct models fail: they claim 131,072
    tokens, and 32,768 positions without the YaRN that their card asks to be added.
    """
    config = checkpoint.config
    positions = next((config[k] for k in ("max_position_embeddings", "n_positions") if config.get(k)), None)
    claim = checkpoint.tokenizer_config.get("model_max_length")
    if not isinstance(positions, int):
        raise NotApplicable("config.json names no number of positions")
    reach = float(positions)
    for key in ("rope_scaling", "rope_parameters"):
        for _, one in _nested(key, config.get(key)):
            original, factor = one.get("original_max_position_embeddings"), one.get("factor")
            if original and factor:
                reach = max(reach, original * factor)
    over, notes = 0.0, [f"{positions:,} positions"]
    if isinstance(claim, int | float) and claim < UNLIMITED:
        over, notes = max(over, claim - reach), [*notes, f"model_max_length {int(claim):,}"]
    tables = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight")
    if (table := checkpoint.stored(tables)) is not None and config.get("model_type") != "opt":  # whose table has 2 more
        rows = checkpoint.tensors[table][1].shape[0]
        over, notes = max(over, abs(rows - positions)), [*notes, f"{rows:,} rows of {table}"]
    if len(notes) == 1:
        raise NotApplicable("the tokenizer claims no length, and positions are not learned")
    return Measurement(max(0.0, over), 0.0, ", ".join(notes))
