"""How big is a model? Counted from its config alone; `moe/model/build.py` makes it."""

from moe.config import RunConfig


def num_parameters(config: RunConfig) -> tuple[int, int]:
    """Parameters of a run's model in all, and those that are active for one token."""
    model, width = config.model, config.model.hidden_size
    expert = 3 * width * model.expert_size
    layer = 4 * width**2 + model.num_experts * width + 2 * width
    if model.num_shared_experts:
        layer += 3 * width + model.num_shared_experts * expert + width  # Qwen2: biases of q, k, v; the shared gate
    else:
        layer += 2 * (width // model.num_heads)  # Qwen3: norms of q and k
    rest = config.data.vocab_size * width + width + model.num_layers * layer
    routed = model.num_layers * expert
    return rest + routed * model.num_experts, rest + routed * model.top_k
