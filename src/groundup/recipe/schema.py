"""What the user asks for: typed, frozen sections. A key that is not here is an error; every key here is read.

`auto` marks a value that `plan` resolves into an explicit number, with a reason and a source beside it.
Stages downstream only ever see a resolved recipe (`Recipe.unresolved()` is empty).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from groundup.recipe.corpus import DataSection, Rows
from groundup.recipe.fields import Auto, BelowOne, Count, Number, Positive, Rate, Section, Share, Text, Weight, Whole
from groundup.recipe.splits import split_problem
from groundup.recipe.train_options import pretrain_problems, train_problems

NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # it names a folder: file systems stop at 255 bytes
LETTERS = {"rope_pattern": "^[RN]+$", "window_pattern": "^[LG]+$"}


class ChatSource(Rows):
    """Where preference pairs or problems come from; their layout is seen from each row's keys."""


class SftSource(ChatSource):
    """Where conversations come from."""

    format: Literal["auto", "messages", "alpaca", "prompt_completion", "human_assistant", "gsm8k"] = Field(
        "auto", description="layout of a row; auto looks at the keys of each row"
    )


class RopeScalingSection(Section):
    """How RoPE is stretched past the context it was trained on."""

    kind: Literal["linear", "ntk", "dynamic", "yarn", "llama3"] = Field(description="the method")
    factor: Rate = Field(description="how many times longer the context becomes")
    original_context: Positive = Field(description="tokens the unstretched model was trained on")
    beta_fast: Rate = Field(32.0, description="yarn: turns above which a dimension is left alone")
    beta_slow: Rate = Field(1.0, description="yarn: turns below which it is interpolated in full")
    attention_factor: Rate | None = Field(
        None, description="yarn: cos and sin are multiplied by it; left out: 0.1 ln(factor) + 1"
    )
    low_freq_factor: Rate = Field(1.0, description="llama3: wavelengths above original_context / this are stretched")
    high_freq_factor: Rate = Field(4.0, description="llama3: wavelengths below original_context / this are kept")


class LatentSection(Section):
    """Multi-head latent attention (DeepSeek-V2): keys and values from one small vector a token."""

    kv_rank: Positive = Field(description="width of that vector, which is what the cache holds")
    nope_dim: Positive = Field(description="width of a head's query and key without position")
    rope_dim: Positive = Field(description="width of their rotated part; one such key serves all heads")
    v_dim: Positive = Field(description="width of a head's value")
    q_rank: Whole = Field(0, description="queries through a bottleneck too; 0: none")


class MoeSection(Section):
    """Mixture of experts: feed-forward layers of which each token uses a part."""

    n_experts: Positive = Field(description="experts in a layer")
    top_k: Positive = Field(description="experts that a token uses")
    d_expert: Positive = Field(description="hidden width of an expert")
    n_shared: Whole = Field(0, description="experts that every token uses, besides")
    first_dense: Whole = Field(0, description="layers at the bottom without experts")
    every: Positive = Field(1, description="after those, one layer in so many has experts")
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="of the router's logits")
    normalise: bool = Field(True, description="the chosen experts' weights sum to 1")
    scale: Rate = Field(1.0, description="and are multiplied by this")
    balance: Literal["loss", "bias", "none"] = Field("loss", description="auxiliary loss, loss-free bias, or neither")
    balance_weight: Weight = Field(0.01, description="balance: loss - its weight")
    bias_rate: Rate = Field(0.001, description="balance: bias - its step")
    z_weight: Weight = Field(0.0, description="weight of the router's z-loss")


class ModelSection(Section):
    """Shape of the Transformer. Behaviour follows from these fields, never from a model's name."""

    params: Count | None = Field(None, description="target size; used to resolve the dimensions left at auto")
    d_model: Positive | Auto = Field("auto", description="width of the residual stream")
    n_layers: Annotated[int, Field(gt=0, le=10_000), Number] | Auto = Field("auto", description="number of blocks")
    n_heads: Positive | Auto = Field("auto", description="query heads")
    n_kv_heads: Positive | Auto = Field("auto", description="key/value heads (GQA when fewer than n_heads, MQA when 1)")
    head_dim: Positive | Auto = Field("auto", description="width of a head; auto = d_model / n_heads")
    d_ff: Positive | Auto = Field("auto", description="hidden width of the feed-forward")
    d_ff_multiple: Positive = Field(32, description="d_ff: auto is rounded up to a multiple of this")
    context: Positive = Field(256, description="longest sequence, tokens")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="kind of normalisation, everywhere")
    norm_eps: Rate = Field(1e-6, description="added to the variance inside the norm")
    norm_weight: bool = Field(True, description="norms have a weight; false: no parameters (OLMo 1)")
    norm_offset: bool = Field(False, description="norms multiply by 1 + weight (Gemma)")
    block: Literal["pre", "post", "output", "sandwich", "parallel", "parallel_shared"] = Field(
        "pre", description="where the norms stand, and whether attention and feed-forward run side by side"
    )
    position: Literal["rope", "learned", "sinusoidal", "alibi", "t5", "none"] = Field(
        "rope", description="how places are told apart"
    )
    rope_base: Rate = Field(10000.0, description="rope: base of the rotation's wavelengths")
    rope_local_base: Rate | None = Field(None, description="rope: base in windowed layers, unscaled (Gemma 3)")
    rope_fraction: Annotated[float, Field(gt=0, le=1), Number] = Field(
        1.0, description="rope: share of a head that is rotated"
    )
    rope_pattern: Annotated[str, Field(pattern=LETTERS["rope_pattern"])] = Field(
        "R", description="rope: repeated over the layers; R rotated, N without position"
    )
    rope_scaling: RopeScalingSection | None = Field(None, description="rope: stretched past its first context")
    relative_buckets: Positive = Field(32, description="t5: buckets of the relative bias")
    relative_distance: Positive = Field(128, description="t5: distance from which on all are one bucket")
    window: Whole = Field(0, description="tokens a local layer sees; 0: no window")
    window_pattern: Annotated[str, Field(pattern=LETTERS["window_pattern"])] = Field(
        "L", description="repeated over the layers; L local (windowed), G global"
    )
    qk_norm: Literal["none", "head", "full"] = Field(
        "head", description="norm on queries and keys: per head (Qwen3), or over all heads (OLMo 2)"
    )
    score_dim: Rate | None = Field(
        None, description="scores are divided by its square root; left out: the head's width"
    )
    attention_softcap: Weight = Field(0.0, description="tanh cap of scores (Gemma 2: 50); 0: none")
    sinks: bool = Field(False, description="a learned score a head that takes attention and gives nothing (gpt-oss)")
    latent: LatentSection | None = Field(None, description="multi-head latent attention (DeepSeek)")
    mlp: Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2"] = Field(
        "swiglu", description="feed-forward: gated (Llama, Gemma) or plain (GPT-2: gelu_tanh)"
    )
    moe: MoeSection | None = Field(None, description="mixture of experts")
    bias: list[Literal["qkv", "out", "up", "down", "norm", "head"]] = Field(
        default_factory=list, description="what has a bias (GPT-2: qkv out up down norm; Qwen2: qkv)"
    )
    tied: bool = Field(True, description="output head shares the embedding's weights")
    embed_scale: Rate = Field(1.0, description="embeddings are multiplied by it (Gemma: sqrt of d_model)")
    logit_scale: Rate = Field(1.0, description="logits are multiplied by it")
    logit_softcap: Weight = Field(0.0, description="tanh cap of logits (Gemma 2: 30); 0: none")
    dropout: BelowOne = Field(0.0, description="share of activations dropped while training")
    init: Literal["gpt2", "depth", "xavier", "he", "mup"] = Field("gpt2", description="initial weights")
    init_std: Rate = Field(0.02, description="init: gpt2, depth, mup - standard deviation of matrices")
    zero_out: bool = Field(False, description="projections into the residual stream start at zero")
    mup_width: Whole = Field(0, description="init: mup - width at which the rates were tuned")


class TokenizerSection(Section):
    load: Text | None = Field(
        None,
        description="one made elsewhere, in place of training: a folder, tokenizer.json, .model, or a run's folder",
    )
    kind: Literal["bpe", "sentencepiece", "unigram", "wordpiece", "char", "byte"] = Field(
        "bpe",
        description="byte-level BPE; SentencePiece's BPE or Unigram; WordPiece over bytes; a token a character; a byte",
    )
    vocab_size: Positive | Auto = Field("auto", description="special tokens included; char, byte: counted")
    split: Text = Field(
        "qwen2",
        description="bpe, wordpiece: where text is cut first: gpt2, gpt4, gpt4o, llama3, qwen2 (every digit alone), "
        "digits2, or one's own regex",
    )
    sample_bytes: Count = Field(50_000_000, description="train on at most this much text")

    @model_validator(mode="before")
    @classmethod
    def _split_has_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "split_digits" in given:
            name = "qwen2" if given["split_digits"] in (True, None) else "llama3"
            raise ValueError(f"split_digits is gone, cuts have names now: write `split: {name}` in its place")
        return given

    @model_validator(mode="after")
    def _loaded_is_not_trained(self) -> TokenizerSection:
        if self.load is not None and (self.kind, self.split) != ("bpe", "qwen2"):
            raise ValueError("load brings its own kind and split: leave those out")
        return self

    @field_validator("split")
    @classmethod
    def _split_cuts(cls, split: str) -> str:
        if problem := split_problem(split):
            raise ValueError(problem)
        return split


class VerifySection(Section):
    enabled: bool = Field(True, description="run the silent-bug checks before pretraining")
    only: list[str] = Field(default_factory=list, description="check ids; empty = all that apply")
    live: bool = Field(True, description="look at the vital signs of a training run; a failing check stops it")
    allow: list[str] = Field(default_factory=list, description="check ids that may fail; the model card tells them")


class GuardSection(Section):
    """When a spike of the loss sends a run back to its last stable checkpoint (docs/guard.md)."""

    enabled: bool = Field(True, description="roll back after a spike of the loss; steps not finite are skipped anyway")
    window: Annotated[int, Field(ge=20), Number] = Field(100, description="steps whose losses say what is usual")
    threshold: Annotated[float, Field(ge=3), Number] = Field(
        6.0, description="robust z-score (of the window's median and MAD) from which a loss is too high"
    )
    patience: Annotated[int, Field(ge=2), Number] = Field(
        5, description="such steps in a row that make a spike; of ten times the threshold, 2 do"
    )
    retries: Whole = Field(4, description="rollbacks for one spike before the run stops")

    @model_validator(mode="after")
    def _patience_is_shorter_than_the_window(self) -> GuardSection:
        if self.patience > self.window // 4:
            raise ValueError(f"patience {self.patience} is more than a quarter of window {self.window}: lower one")
        return self


# What may change in the middle of a run: when it is saved, what is kept of that, and who cuts its batches.
KEEPING = ("save_every", "save_minutes", "keep_checkpoints", "keep_best", "keep_every", "prefetch")


class TrainSection(Section):
    """What every training stage shares: they all run on the one loop."""

    steps: Count | Auto = Field("auto", description="optimizer steps")
    batch_size: Positive = Field(64, description="sequences (or pairs, or prompts) in one optimizer step")
    micro_batch_size: Positive | Auto = Field("auto", description="sequences in one forward pass")
    optimizer: Literal["adamw", "muon", "soap", "lion", "adafactor"] = Field(
        "muon", description="muon, soap: matrices in blocks, AdamW the rest; the others: everything"
    )
    normuon: bool = Field(False, description="muon: rows of an update made equally large (NorMuon)")
    soap_frequency: Positive = Field(10, description="soap: steps between new eigenvectors")
    learning_rate: Rate | Auto = Field("auto", description="peak rate of AdamW, SOAP, Lion or Adafactor")
    muon_learning_rate: Rate | Auto = Field("auto", description="peak rate of Muon (unused by the others)")
    rates: dict[Literal["matrix", "embedding", "vector", "router"], Rate] = Field(
        default_factory=dict, description="rate of a role, as a multiple of its optimizer's; left out: 1"
    )
    betas: tuple[BelowOne, BelowOne] = Field((0.9, 0.95), description="decay of AdamW's, SOAP's, Lion's running means")
    weight_decay: Weight = Field(0.1, description="decoupled, on matrices alone")
    cautious: bool = Field(False, description="decay only where weight and update have the same sign")
    ema: BelowOne | None = Field(
        None, description="decay of an average of the weights, which is then validated and released; left out: none"
    )
    grad_clip: Rate = Field(1.0, description="largest global gradient norm")
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field(
        "wsd", description="of the rate after warm-up; wsd (or trapezoid): stable, then a fall"
    )
    warmup: Share = Field(0.02, description="share of the steps spent warming up")
    decay: Share = Field(0.4, description="wsd: share of the steps spent decaying")
    decay_shape: Literal["linear", "sqrt", "cosine"] = Field(
        "linear", description="wsd: shape of the fall; sqrt: 1 - sqrt(share of it that is over)"
    )
    min_rate: Share = Field(0.0, description="final rate as a share of the peak")
    precision: Literal["auto", "bf16", "fp32", "fp16", "float8"] = Field(
        "auto", description="of the matrix products; float8: bf16 with float8 products, on CUDA, by torchao"
    )
    compile: bool | Auto = Field("auto", description="torch.compile each block")
    recompute: Literal["none", "block", "selective"] = Field(
        "none", description="activations computed again in the backward pass: a block's, or all but its matrix products"
    )
    log_every: Positive = Field(10, description="steps between rows of metrics.jsonl")
    validate_every: Positive = Field(200, description="steps between validations")
    save_every: Positive = Field(200, description="steps between checkpoints")
    save_minutes: Rate | None = Field(None, description="minutes between checkpoints too, whichever comes first")
    prefetch: Whole = Field(2, description="steps whose batches are cut ahead, by as many threads; 0: none")
    keep_checkpoints: Positive = Field(5, description="newest checkpoints kept; the guard may keep two more")
    keep_best: Whole = Field(0, description="besides: checkpoints with the best validation kept; a best one is saved")
    keep_every: Positive | None = Field(None, description="besides: those at multiples of so many steps, for good")
    max_bad_steps: Positive = Field(10, description="non-finite steps in a row before the run goes back, or stops")
    guard: GuardSection = Field(default_factory=GuardSection, description="what is done about a spike of the loss")

    def of_training(self) -> dict[str, Any]:
        """What decides the stage's result, and what a run that goes on must have unchanged."""
        return self.model_dump(mode="json", exclude=set(KEEPING))

    @field_validator("schedule", mode="before")
    @classmethod
    def _one_schedule_of_two_names(cls, schedule: Any) -> Any:
        return "wsd" if schedule == "trapezoid" else schedule

    @model_validator(mode="after")
    def _options_do_something(self) -> TrainSection:
        if found := train_problems(self):
            raise ValueError("; ".join(found))
        return self


class PretrainSection(TrainSection):
    # auto is resolved before any stage sees it, so the others need not know that it can be a word
    batch_size: Positive | Auto = Field(64, description="sequences in one optimizer step")  # type: ignore[assignment]
    rule: Literal["olmo-ladder", "deepseek", "step-law", "nanochat"] = Field(
        "olmo-ladder", description="published rule that batch_size and rates at auto follow"
    )
    batch_ramp: list[tuple[Share, Positive]] = Field(
        default_factory=list, description="[share of the steps from which on, batch size], growing up to batch_size"
    )
    z_loss: Weight = Field(0.0, description="weight of log(Z)^2 of the output's softmax (PaLM: 1e-4)")
    cooldown_from: Text | None = Field(
        None, description="a checkpoint of another run's stable phase: go on from it, and only decay, up to steps"
    )
    sample_every: Positive = Field(400, description="steps between sampled texts")
    sample_prompts: list[str] = Field(default_factory=lambda: ["The"], description="beginnings of those texts")

    @model_validator(mode="after")
    def _ramp_and_cooldown(self) -> PretrainSection:
        if found := pretrain_problems(self):
            raise ValueError("; ".join(found))
        return self


class SftSection(TrainSection):
    sources: list[SftSource] = Field(min_length=1, description="conversations")
    batch_size: Positive = Field(32, description="sequences in one optimizer step")
    z_loss: Weight = Field(0.0, description="weight of log(Z)^2 of the output's softmax (PaLM: 1e-4)")


class DpoSection(TrainSection):
    sources: list[ChatSource] = Field(min_length=1, description="preference pairs (problems where pairs: sampled)")
    pairs: Literal["given", "sampled"] = Field(
        "given", description="pairs from the sources, or the model's own right and wrong samples to problems"
    )
    samples: Positive = Field(8, description="pairs: sampled - answers drawn for each problem")
    beta: Rate = Field(0.1, description="strength of the tie to the reference model")
    batch_size: Positive = Field(32, description="pairs in one optimizer step")


class GrpoSection(TrainSection):
    sources: list[ChatSource] = Field(min_length=1, description="problems whose answers a program can judge")
    group_size: Annotated[int, Field(ge=2), Number] = Field(8, description="answers drawn for each problem")
    max_new_tokens: Positive = Field(48, description="longest answer drawn, tokens")
    temperature: Rate = Field(1.0, description="of the answers drawn while training")
    clip: Rate = Field(0.2, description="largest change of the probability ratio, PPO's epsilon")
    kl_beta: Weight = Field(0.0, description="weight of the KL to the model that the stage starts from")
    batch_size: Positive = Field(32, description="problems in one optimizer step")
    guard: GuardSection = Field(
        default_factory=lambda: GuardSection(enabled=False), description="always off: the loss is no likelihood here"
    )

    @model_validator(mode="after")
    def _no_guard(self) -> GrpoSection:
        if self.guard.enabled:
            raise ValueError("guard: an on-policy loss is no likelihood, a jump of it says nothing: leave guard out")
        return self


class TaskSource(Section):
    """A local JSONL task for lm-evaluation-harness: one question a line."""

    name: Text = Field(description="what the results call it")
    path: Text = Field(description="a .jsonl file")
    prompt_field: str = Field("prompt", description="field that holds the question")
    answer_field: str = Field("answer", description="field that holds the answer, or a list of accepted ones")
    choices_field: str | None = Field(None, description="multiple choice by log-likelihood instead of generation")


class EvaluateSection(Section):
    tasks: list[str | TaskSource] = Field(default_factory=list, description="builtin names or local JSONL tasks")
    limit: Positive | None = Field(None, description="questions a task, at most")
    max_new_tokens: Positive = Field(48, description="longest answer, tokens")
    batch_size: Positive = Field(128, description="questions answered at once")
    bits_per_byte_bytes: Count = Field(400_000, description="validation text scored for bits per byte")


class RecordSection(Section):
    trackers: list[Literal["wandb", "mlflow"]] = Field(
        default_factory=list, description="where the numbers of training go besides metrics.jsonl and TensorBoard"
    )
    project: Text = Field("groundup", description="W&B's project, MLflow's experiment")


class CardSection(Section):
    license: str = Field("apache-2.0", description="licence of the weights, by its identifier on the Hub")
    language: list[str] = Field(default_factory=lambda: ["en"], description="languages, by their codes")
    intended_use: str = Field("Study and experiments; not for production.", description="a sentence")
    limitations: str = Field(
        "A small model: it knows little beyond its corpus and is often wrong.", description="a sentence"
    )


class Recipe(Section):
    """One YAML file, from raw text to a released model. sft, dpo and grpo are optional."""

    name: Annotated[str, Field(pattern=NAME)] = Field(description="of the run's folder, below runs/")
    description: str = Field("", description="a sentence, for the card and the report")
    # Larger seeds would leave 64 bits where the stages multiply them.
    seed: Annotated[int, Field(ge=0, lt=2**32), Number] = Field(1337, description="every random number follows from it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="what the models run on")
    threads: Annotated[int, Field(gt=0, le=1024), Number] | Auto = Field(
        "auto", description="CPU threads; results depend on it in the last bits"
    )
    base: Text | None = Field(
        None, description="folder of a Hugging Face checkpoint to start from, instead of pretraining"
    )
    model: ModelSection = Field(default_factory=ModelSection, description="shape of the Transformer")
    tokenizer: TokenizerSection = Field(default_factory=TokenizerSection, description="text to ids")
    data: DataSection | None = Field(None, description="the corpus; required without base")
    verify: VerifySection = Field(default_factory=VerifySection, description="the silent-bug checks")
    pretrain: PretrainSection = Field(default_factory=PretrainSection, description="next-token prediction")
    sft: SftSection | None = Field(None, description="supervised fine-tuning; left out: no such stage")
    dpo: DpoSection | None = Field(None, description="direct preference optimisation, after sft")
    grpo: GrpoSection | None = Field(None, description="reinforcement learning on verifiable problems, last")
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection, description="after each model stage")
    record: RecordSection = Field(default_factory=RecordSection, description="who else is told; decides no result")
    card: CardSection = Field(default_factory=CardSection, description="what only a person can say")

    @model_validator(mode="after")
    def _something_to_start_from(self) -> Recipe:
        if self.base is None and self.data is None:
            raise ValueError("give data (a corpus to pretrain on), or base (a checkpoint to start from)")
        return self

    @model_validator(mode="after")
    def _tune_needs_sft(self) -> Recipe:
        if self.sft is None and (self.dpo or self.grpo) and self.base is None:
            raise ValueError("dpo and grpo start from the SFT model: add an sft section")
        return self

    def unresolved(self) -> list[str]:
        """Dotted keys still at 'auto'."""
        return [
            key
            for key, value in walk(self.model_dump(mode="json"))
            if value == "auto" and not key.endswith(("format", ".kind"))  # read from each file, not resolved
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
