"""What the user asks for: typed, frozen sections. A key that is not here is an error; every key here is read.

`auto` marks a value that `plan` resolves into an explicit number, with a reason and a source beside it.
Stages downstream only ever see a resolved recipe (`Recipe.unresolved()` is empty).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]

_SUFFIX = {"K": 1e3, "M": 1e6, "B": 1e9}


def parse_count(value: Any) -> Any:
    """'1.5M' -> 1500000; numbers and 'auto' pass through."""
    if isinstance(value, str) and value[-1:].upper() in _SUFFIX:
        try:
            return int(float(value[:-1].replace("_", "")) * _SUFFIX[value[-1].upper()])
        except ValueError:
            return value
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where documents come from: exactly one of `path` (file, folder or glob), `builtin` or `dataset`."""

    path: str | None = Field(None, description="file, folder or glob: .txt .md .jsonl .parquet (also .gz .zst)")
    builtin: Literal["town", "python"] | None = Field(None, description="a corpus groundup makes itself")
    dataset: str | None = Field(None, description="Hugging Face dataset id, or a local folder of one")
    config: str | None = Field(None, description="configuration name of the dataset")
    split: str = Field("train", description="split of the dataset")
    text_field: str = Field("text", description="field that holds the text in .jsonl, .parquet and datasets")
    max_documents: Count | None = Field(None, description="stop after this many documents (or examples)")

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [k for k in ("path", "builtin", "dataset") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, builtin, dataset (got {', '.join(given) or 'none'})")
        return self


class ChatSource(Source):
    """Where conversations, preference pairs or problems come from."""

    format: Literal["auto", "messages", "alpaca", "prompt_completion", "human_assistant", "gsm8k"] = Field(
        "auto", description="layout of a row; auto looks at the first row's keys"
    )


class ModelSection(Section):
    """Shape of the Transformer. Behaviour follows from these fields, never from a model's name."""

    params: Count | None = Field(None, description="target size; used to resolve the dimensions left at auto")
    d_model: Positive | Auto = Field("auto", description="width of the residual stream")
    n_layers: Positive | Auto = Field("auto", description="number of blocks")
    n_heads: Positive | Auto = Field("auto", description="query heads")
    n_kv_heads: Positive | Auto = Field("auto", description="key/value heads (GQA when fewer than n_heads)")
    head_dim: Positive | Auto = Field("auto", description="width of a head; auto = d_model / n_heads")
    d_ff: Positive | Auto = Field("auto", description="hidden width of the feed-forward")
    context: Positive = Field(256, description="longest sequence, tokens")
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: Rate = 1e-6
    position: Literal["rope", "learned"] = "rope"
    rope_base: Rate = 10000.0
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk_norm: bool = Field(True, description="RMSNorm on queries and keys, per head (Qwen3)")
    tied: bool = Field(True, description="output head shares the embedding's weights")
    bias: bool = Field(False, description="biases in the linear layers (GPT-2)")
    dropout: Share = 0.0


class TokenizerSection(Section):
    kind: Literal["bpe", "char"] = Field("bpe", description="byte-level BPE, or one token a character")
    vocab_size: Positive | Auto = Field("auto", description="special tokens included; char: counted")
    split_digits: bool = Field(True, description="every digit is a token of its own (arithmetic needs it)")
    sample_bytes: Count = Field(50_000_000, description="train on at most this much text")


class DataSection(Section):
    sources: list[Source] = Field(min_length=1)
    validation: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.01, description="share of documents held out, chosen by document hash"
    )
    deduplicate: bool = Field(True, description="drop documents whose text was seen before (exact)")


class VerifySection(Section):
    enabled: bool = Field(True, description="run the silent-bug checks before pretraining")
    only: list[str] = Field(default_factory=list, description="check ids; empty = all that apply")


class TrainSection(Section):
    """What every training stage shares: they all run on the one loop."""

    steps: Count | Auto = Field("auto", description="optimizer steps")
    batch_size: Positive = Field(64, description="sequences (or pairs, or prompts) in one optimizer step")
    micro_batch_size: Positive | Auto = Field("auto", description="sequences in one forward pass")
    optimizer: Literal["adamw", "muon"] = Field("muon", description="muon: matrices in blocks; AdamW the rest")
    learning_rate: Rate | Auto = Field("auto", description="peak rate of AdamW")
    muon_learning_rate: Rate | Auto = Field("auto", description="peak rate of Muon (unused by adamw)")
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    grad_clip: Rate = Field(1.0, description="largest global gradient norm")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "wsd"
    warmup: Share = Field(0.02, description="share of the steps spent warming up")
    decay: Share = Field(0.4, description="wsd: share of the steps spent decaying")
    min_rate: Share = Field(0.0, description="final rate as a share of the peak")
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool | Auto = Field("auto", description="torch.compile each block")
    log_every: Positive = 10
    validate_every: Positive = Field(200, description="steps between validations")
    save_every: Positive = Field(200, description="steps between checkpoints")
    keep_checkpoints: Positive = 5
    max_bad_steps: Positive = Field(10, description="non-finite steps in a row before the run stops")


class PretrainSection(TrainSection):
    sample_every: Positive = Field(400, description="steps between sampled texts")
    sample_prompts: list[str] = Field(default_factory=lambda: ["The"])


class SftSection(TrainSection):
    sources: list[ChatSource] = Field(min_length=1)
    batch_size: Positive = 32


class DpoSection(TrainSection):
    sources: list[ChatSource] = Field(min_length=1)
    pairs: Literal["given", "sampled"] = Field(
        "given", description="pairs from the sources, or the model's own right and wrong samples to problems"
    )
    samples: Positive = Field(8, description="pairs: sampled - answers drawn for each problem")
    beta: Rate = Field(0.1, description="strength of the tie to the reference model")
    batch_size: Positive = 32


class GrpoSection(TrainSection):
    sources: list[ChatSource] = Field(min_length=1)
    group_size: Annotated[int, Field(ge=2)] = Field(8, description="answers drawn for each problem")
    max_new_tokens: Positive = 48
    temperature: Rate = 1.0
    clip: Rate = Field(0.2, description="largest change of the probability ratio, PPO's epsilon")
    kl_beta: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the KL to the SFT model")
    batch_size: Positive = 32


class TaskSource(Section):
    """A local JSONL task for lm-evaluation-harness: one question a line."""

    name: str
    path: str
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    choices_field: str | None = Field(None, description="multiple choice by log-likelihood instead of generation")


class EvaluateSection(Section):
    tasks: list[str | TaskSource] = Field(default_factory=list, description="builtin names or local JSONL tasks")
    limit: Positive | None = Field(None, description="questions a task, at most")
    max_new_tokens: Positive = 48
    batch_size: Positive = 128
    bits_per_byte_bytes: Count = Field(400_000, description="validation text scored for bits per byte")


class CardSection(Section):
    license: str = "apache-2.0"
    language: list[str] = Field(default_factory=lambda: ["en"])
    intended_use: str = "Study and experiments; not for production."
    limitations: str = "A small model: it knows little beyond its corpus and is often wrong."


class Recipe(Section):
    """One YAML file, from raw text to a released model. sft, dpo and grpo are optional."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: int = 1337
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | Auto = "auto"
    model: ModelSection = Field(default_factory=ModelSection)
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection)
    data: DataSection
    verify: VerifySection = Field(default_factory=VerifySection)
    pretrain: PretrainSection = Field(default_factory=PretrainSection)
    sft: SftSection | None = None
    dpo: DpoSection | None = None
    grpo: GrpoSection | None = None
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    card: CardSection = Field(default_factory=CardSection)

    @model_validator(mode="after")
    def _tune_needs_sft(self) -> Recipe:
        if self.sft is None and (self.dpo or self.grpo):
            raise ValueError("dpo and grpo start from the SFT model: add an sft section")
        return self

    def unresolved(self) -> list[str]:
        """Dotted keys still at 'auto'."""
        return [
            key for key, value in walk(self.model_dump(mode="json")) if value == "auto" and not key.endswith("format")
        ]


def walk(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested dicts and lists."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from walk(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list | tuple) and any(isinstance(v, dict) for v in tree):
        for i, value in enumerate(tree):
            yield from walk(value, f"{prefix}[{i}]")
    else:
        yield prefix, tree
