"""How much memory will a stage take? Predicted from the config alone, so that no more jobs start than fit.

Counted is what Linux calls resident, of a process on the CPU. Left out are pages of the packed data, which the kernel
takes back when it needs them. On an accelerator the host holds less: there a prediction is a bound.
"""

from collections.abc import Sequence
from pathlib import Path

import psutil

from moe.config import RunConfig
from moe.scale import HardwareConfig, Scale
from moe.size import num_parameters

MB = 10**6

# Measured on x86-64 Linux: what a process holds when its libraries have done their first tiny piece of work.
TRAINING_BYTES = 427 * MB
PROBE_BYTES = 490 * MB
LM_EVAL_BYTES = 650 * MB
PACKING_BYTES = 600 * MB
EXPERT_PARALLEL_BYTES = 230 * MB  # of its own: these processes share the pages of their libraries
DRAWING_BYTES = 350 * MB

# Fitted: tensors come and go in other orders than they lie in, and glibc keeps the holes. They were 30 % of the live
# activations, and half of the activations more, up to its trim threshold of 64 MiB.
HOLES = 0.3
KEPT_BYTES = 64 << 20

LOSS_TOKENS = 256
"""Tokens whose logits `moe/model/objective.py` holds at once; its import takes seconds."""

SHORT = 256
"""Tokens of the longest sequence whose attention `moe/speed.py` may compute as two products, which keep its
probabilities; its import takes seconds too."""

LOADED = 2
"""How often the weights of a loaded checkpoint count: its file stays mapped beside them."""

MARGIN = 1.15
"""What a job asks for, over its prediction: the error that a prediction may have."""
RESERVE_BYTES = 256 * MB
"""Memory of the machine that no job is given."""


ALONE = {"processes": 1, "nodes": 1, "shard": False}


def peak_bytes(config: RunConfig, hardware: HardwareConfig) -> int:
    """Peak resident memory of one process of a training run.

    Compiled layers keep less of a pass and their compiler more of its own, about as much at small sizes.

    libraries + weights + AdamW's two moments (+ DDP's buckets of the gradients) + the largest of three moments: loss,
    backward pass of the last layer's experts, end of the backward pass.
    """
    train, vocab_bytes = config.train, 4 * config.data.vocab_size * config.model.hidden_size
    parameters = 4 * num_parameters(config)[0]
    tokens = _pass_tokens(config, hardware)
    kept, recomputed, working = _layer_bytes(config)
    layers, final_norm = config.model.num_layers * kept, 4 * 4 * config.model.hidden_size
    # The loss holds its targets' hidden states, a chunk of logits and as much again at work, and two gradients of the
    # head. Every gradient of the passes before stays; only the last pass has none of them to add to.
    logits = 2 * 4 * min(LOSS_TOKENS, tokens) * config.data.vocab_size
    expert_gradients = 4 * _layer_experts(config)
    carried = parameters if train.num_passes(hardware.ranks) > 1 else 0
    live = max(
        carried + 2 * vocab_bytes + logits + tokens * (layers + final_norm),
        carried + vocab_bytes + expert_gradients + tokens * (layers + recomputed + working),
        parameters + (expert_gradients if carried else 0) + tokens * (kept + recomputed),
    )
    activations = tokens * (layers + recomputed + working)
    holes = HOLES * activations + min(activations / 2, KEPT_BYTES)
    fixed = TRAINING_BYTES + 3 * parameters + (parameters if hardware.ranks > 1 else 0)
    if train.precision == "bf16":
        fixed += 2 * 4 * config.model.hidden_size**2 * config.model.num_layers  # autocast's copies of q, k, v and o
    return int(fixed + live + holes)


def _layer_bytes(config: RunConfig) -> tuple[int, int, int]:
    """Bytes per token: kept of each layer until the backward pass, held of one layer while that is recomputed, and
    held beside it while the backward pass is in that layer's experts."""
    model = config.model
    hidden, rows = model.hidden_size, model.top_k * model.hidden_size
    units = model.top_k * model.expert_size
    mixed = config.train.precision == "bf16"
    # Norms, before attention and before the experts: input, normalised, output.
    norms = 4 * 6 * hidden
    # Attention: rotated q and k, v, output, the log-sum-exp of each head.
    attention = (2 if mixed else 4) * 4 * hidden + 4 * model.num_heads
    if config.data.sequence_length <= SHORT and not mixed:
        attention += 4 * model.num_heads * config.data.sequence_length
    if not model.num_shared_experts:
        # Qwen3's norms of q and k: input in fp32, normalised, and one number per head.
        attention += 2 * (4 + (2 if mixed else 4)) * hidden + 2 * 4 * model.num_heads
    if mixed:
        attention += 3 * 2 * hidden  # a copy of the input for each of q, k and v
    # Router: logits, scores, and the scores again that the statistics sum up; chosen experts and their gates.
    router = 4 * 3 * model.num_experts + (8 + 4) * model.top_k
    # Experts (`sorted_experts`): order and position; gate and up, activated, their product, and that times the gates.
    experts = 2 * 8 * model.top_k + 4 * 5 * units
    # Shared experts: gate, activated, up, inner; their output before the gate.
    shared = 4 * (4 * model.num_shared_experts * model.expert_size + hidden) if model.num_shared_experts else 0
    layer = norms + attention + router + experts + shared
    # Gradients of product and activated, gate and up, and of the rows, which are summed up over each token.
    working = 4 * (rows + 4 * units + hidden)
    if not config.train.activation_checkpointing:
        return layer, 0, working
    return 4 * hidden + 4 * 2 * model.num_experts + 8 * model.top_k, layer, working


def train_bytes(config: RunConfig, scale: Scale) -> int:
    """Peak of all processes of a training run on one machine. One that goes on also maps its checkpoint, in pages that
    the kernel can take back. Where GPUs train, the machine holds libraries and, in its first process, a checkpoint."""
    hardware = scale.hardware
    if hardware.gpu_gb:
        return hardware.processes * HOST_BYTES + 12 * num_parameters(config)[0]
    return hardware.processes * peak_bytes(config, hardware)


GPU_BYTES = 2_000 * MB
"""Assumed, not measured: a process's context on its GPU and the buffers of its collectives."""
HOST_BYTES = 4_000 * MB
"""Assumed, not measured: what a process that trains on a GPU holds of the machine's memory."""
GATHERED_LAYERS = 2
"""Layers of a divided training that are whole at a time: one at work, the next on its way."""


def gpu_bytes(config: RunConfig, hardware: HardwareConfig) -> int:
    """Peak memory of one GPU that trains the run, estimated and not measured.

    16 bytes per parameter for weight, gradient and moments, divided or whole, + activations as on the CPU + what a
    divided training puts together + under bf16 copies of the experts, kept until their layer's backward pass, which
    holds one more for their gradient; recomputed layers have one at a time.
    """
    total, tokens = num_parameters(config)[0], _pass_tokens(config, hardware)
    vocab = config.data.vocab_size * config.model.hidden_size
    kept, recomputed, working = _layer_bytes(config)
    activations = tokens * (config.model.num_layers * kept + recomputed + working)
    if hardware.shard:
        layer = (total - vocab) // config.model.num_layers
        gathered = 4 * (GATHERED_LAYERS * layer + layer + 2 * vocab)  # weights, and the gradient of one
        parameters = 16 * total // hardware.ranks + gathered
    else:
        parameters = (16 if hardware.ranks == 1 else 20) * total  # several processes hold buckets of gradients too
    if config.train.precision == "bf16":
        parameters += (
            2 * _layer_experts(config) * (1 + (1 if config.train.activation_checkpointing else config.model.num_layers))
        )
    logits = 2 * 4 * min(LOSS_TOKENS, tokens) * config.data.vocab_size
    return GPU_BYTES + parameters + activations + logits


def _layer_experts(config: RunConfig) -> int:
    """Parameters of the routed experts of one layer."""
    return 3 * config.model.hidden_size * config.model.expert_size * config.model.num_experts


def _pass_tokens(config: RunConfig, hardware: HardwareConfig) -> int:
    """Tokens of the largest forward pass of one process."""
    shares = config.train.num_passes(hardware.ranks) * hardware.ranks
    return -(-config.train.batch_sequences // shares) * config.data.sequence_length


def estimators_bytes(config: RunConfig, scale: Scale) -> int:
    """Peak of the comparison of estimators: one process, whose passes take up to the whole batch and keep all of it."""
    whole = {"sequences_per_pass": config.train.batch_sequences, "activation_checkpointing": False}
    config = config.model_copy(update={"train": config.train.model_copy(update=whole)})
    return peak_bytes(config, scale.hardware.model_copy(update=ALONE))


def latency_bytes(configs: Sequence[RunConfig], scale: Scale) -> int:
    """Peak of timing runs side by side in one process: each holds two loaded models and the moments of one. Before
    that, two processes of an expert-parallel layer stand beside it."""
    alone = scale.hardware.model_copy(update=ALONE)
    weights = [4 * num_parameters(config)[0] for config in configs]
    steps = [peak_bytes(config, alone) - 3 * size for config, size in zip(configs, weights, strict=True)]
    return max(max(steps) + (2 * LOADED + 2) * sum(weights), TRAINING_BYTES + 2 * EXPERT_PARALLEL_BYTES)


def evaluate_bytes(config: RunConfig, scale: Scale) -> int:
    """Peak of the evaluation: lm-eval's logits of a batch that is all answers and their log-softmax, without tasks
    the logits of a chunk."""
    tokens = scale.evaluation.batch_size * config.data.sequence_length
    libraries, held = (LM_EVAL_BYTES, tokens) if scale.evaluation.tasks else (PROBE_BYTES, min(LOSS_TOKENS, tokens))
    return libraries + _inference_bytes(config, scale.evaluation.batch_size) + 2 * 4 * held * config.data.vocab_size


def _inference_bytes(config: RunConfig, sequences: int) -> int:
    """A loaded model, the router logits of all layers, and one layer at work."""
    kept = config.model_copy(update={"train": config.train.model_copy(update={"activation_checkpointing": False})})
    tokens, layer = sequences * config.data.sequence_length, _layer_bytes(kept)[0]
    logits = 4 * config.model.num_layers * config.model.num_experts
    return LOADED * 4 * num_parameters(config)[0] + tokens * (layer + logits)


def requested_mb(predicted: int) -> int:
    """Megabytes that a job asks for."""
    return -int(-predicted * MARGIN // MB)


def available_mb(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Megabytes that jobs may take on this machine now, within a limit of the control group."""
    limits = [psutil.virtual_memory().available]
    # Version 2 and version 1 of control groups; where there is no limit the file says "max" or a number beyond all.
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = groups / name
        if path.is_file() and (text := path.read_text().strip()).isdecimal():
            limits.append(int(text))
    return max(0, min(limits) - RESERVE_BYTES) // MB


def has_accelerator() -> bool:
    """Whether there is a GPU that torch may use; to ask torch takes seconds."""
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd"))
