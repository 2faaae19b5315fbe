"""Types of the records that the report reads, one for each file of JSON or JSON lines."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moe.config import Name
from moe.scale import Experiment, LatencyConfig

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a record: the fields that the report reads; others may follow."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Stamp(Part):
    """What made a record."""

    code: str
    versions: dict[str, str] = {}
    device: str = "unknown"
    config_hash: str = ""


class TrainRecord(Stamp):
    """`train.json`."""

    schema_: Literal["moe-train/1"] = Field(alias="schema")
    steps: int
    tokens: int
    parameters: int
    active_parameters: int
    processes: int = 1
    weights_sha256: str = ""


class CurveLine(Part):
    """One line of `train.jsonl`."""

    step: int
    lm_loss: Finite
    balance: list[list[Finite] | None]
    """Per term and layer; null where the term does not act."""
    max_vio_global: list[Finite]
    max_vio_micro: list[Finite]
    dead_experts: list[int]
    dropped: list[Finite] | None = None
    """Share of the choices of each layer; None without a capacity."""


class SpeedLine(Part):
    """One line of `speed.jsonl`: the speed over the steps since the line before."""

    step: int
    tokens_per_second: Finite = Field(gt=0)


class Heldout(Part):
    """Held-out loss of one domain."""

    nats: Finite
    perplexity: Finite
    bits_per_byte: Finite
    tokens: int


class Average(Part):
    """Means over the domains."""

    nats: Finite
    perplexity: Finite
    bits_per_byte: Finite


class DropExpert(Part):
    """What the domains lose without one expert."""

    sequences: dict[str, int]
    """Sequences of each domain that were measured on, in the order of the last axis of `nats`."""
    nats: list[list[list[Finite]]]
    """Increase of nats per token, [layer][expert][domain]."""


class EvaluationRecord(Stamp):
    """`evaluation.json`; `lm_eval` is lm-eval's own record. Older records have no cosine, and only some have the loss
    without each expert."""

    schema_: Literal["moe-evaluation/1"] = Field(alias="schema")
    heldout: dict[str, Heldout] = Field(min_length=1)
    average: Average
    router_cosine: list[Finite] | None = None
    drop_expert: DropExpert | None = None
    lm_eval: dict[str, Any] | None = None


class Phases(Part):
    """Latencies of one kind of routing: seconds of each prefill, and of each decoded position, of the whole batch."""

    prefill_seconds: list[Finite] = Field(min_length=1)
    decode_seconds: list[Finite] = Field(min_length=1)


class Timing(Part):
    """Latencies of one run; a training step is timed once in every repetition."""

    train_step_seconds: list[Finite] = Field(min_length=1)
    learned: Phases
    balanced: Phases


Seconds = Annotated[Finite, Field(gt=0)]


class LayerSeconds(Part):
    """A real expert-parallel layer: selections [processes, experts] and least seconds."""

    pattern: str
    tokens: int
    counts: list[list[int]] = Field(min_length=1)
    seconds: Seconds


class ExpertParallel(Part):
    """Layers of two processes, and their parts alone: least seconds by size (bytes or rows)."""

    experts: int
    top_k: int
    hidden_size: int
    expert_size: int
    value_bytes: int
    transfer: dict[int, Seconds] = Field(min_length=2)
    product: dict[int, Seconds] = Field(min_length=2)
    sort: dict[int, Seconds] = Field(min_length=2)
    layers: list[LayerSeconds] = Field(min_length=1)


class LatencyRecord(Stamp):
    """`latency.json`: runs that were timed side by side, repetition by repetition."""

    schema_: Literal["moe-latency/1"] = Field(alias="schema")
    settings: LatencyConfig
    runs: dict[str, Timing]
    expert_parallel: ExpertParallel | None = None


class Gradient(Part):
    """The balance gradient of one estimator beside that of `exact`, at one step, with respect to one layer's router.

    `passes` is None where the estimator does not depend on the number of accumulation passes.
    """

    step: int
    estimator: str
    passes: int | None = Field(ge=1)
    layer: int = Field(ge=0)
    cosine: Finite
    relative_error: Finite = Field(ge=0)


class StepSeconds(Part):
    """Seconds of optimizer steps with one estimator; equal places in the lists of a record ran beside each other."""

    estimator: str
    passes: int = Field(ge=1)
    seconds: list[Annotated[Finite, Field(gt=0)]] = Field(min_length=1)


class EstimatorsRecord(Stamp):
    """`estimators.json`: the estimators of f on the way of one run that was trained with `exact`."""

    schema_: Literal["moe-estimators/1"] = Field(alias="schema")
    run: str
    seed: int
    batch_sequences: int
    gradients: list[Gradient] = Field(min_length=1)
    step_seconds: list[StepSeconds] = Field(min_length=1)


class Entry(Part):
    """One row of the runs table."""

    run: str
    experiment: str
    arm: str
    labels: dict[str, str]
    seed: int
    data: str


class RunsTable(Part):
    """`runs.json`: which runs belong to which arm of which experiment."""

    schema_: Literal["moe-runs/1"] = Field(alias="schema")
    scale: str
    description: str = ""
    settings: dict[str, Any] = {}
    experiments: dict[Name, Experiment]
    runs: list[Entry]
