"""Which model a config stands for: a stock transformers MoE with our router and dispatch inside."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe.config import ModelConfig
from moe.model import dispatch
from moe.model.router import Router, follow_positions
from moe.settings import ConfigError

BIAS_FILE = "router_bias.safetensors"


def build_model(
    config: ModelConfig, *, vocab_size: int, max_tokens: int, seed: int, forced: bool = False
) -> PreTrainedModel:
    """A fresh model on the CPU in fp32, with our parts inside; `forced` as in `BalanceConfig`, the other arguments as
    in `stock_model`."""
    model = stock_model(config, vocab_size=vocab_size, max_tokens=max_tokens, seed=seed)
    # Written into the checkpoint's config.json: stock classes ignore it, `load_model` does not.
    if config.gate != "softmax":
        model.config.router_gate = config.gate
    if forced:
        model.config.router_by_position = True
    return use_our_parts(model)


def stock_model(config: ModelConfig, *, vocab_size: int, max_tokens: int, seed: int) -> PreTrainedModel:
    """The model as transformers makes it; equal arguments give equal weights.

    `max_tokens`: longest sequence that the checkpoint announces, in tokens.
    Qwen3-MoE, or Qwen2-MoE where shared experts are asked for.
    """
    common = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "intermediate_size": config.expert_size,
        "moe_intermediate_size": config.expert_size,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.top_k,
        "norm_topk_prob": config.normalize_top_k,
        "max_position_embeddings": max_tokens,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    if config.num_shared_experts:
        shared_size = config.num_shared_experts * config.expert_size
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**common, shared_expert_intermediate_size=shared_size))
    common["head_dim"] = config.hidden_size // config.num_heads
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**common))


def use_our_parts(model: PreTrainedModel) -> PreTrainedModel:
    """Put our router and dispatch into a stock Qwen2-MoE, Qwen3-MoE or OLMoE model; its parameters stay the same
    objects under the same names, and its logits stay the same, unless its config asks for a `router_gate` of another
    kind or for routing `router_by_position`."""
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate = Router.like(layer.mlp.gate, getattr(model.config, "router_gate", "softmax"))
    if getattr(model.config, "router_by_position", False):
        for router in routers(model):
            router.by_position = True
        follow_positions(model)
    model.set_experts_implementation(dispatch.NAME)
    return model


def routers(model: PreTrainedModel) -> list[Router]:
    """The routers of the model, first layer first."""
    return [module for module in model.modules() if isinstance(module, Router)]


def num_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in all, and those that are active for one token: of the routed experts only K of N_E."""
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    config = model.config
    return total, total - routed + routed * config.num_experts_per_tok // config.num_experts


def load_model(folder: Path) -> PreTrainedModel:
    """A trained checkpoint with our router and dispatch, for inference; raises `ConfigError` if it is damaged."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,  # else pickled weights are read where there are no others
            trust_remote_code=False,
        )
        biases = load_file(folder / BIAS_FILE) if (folder / BIAS_FILE).exists() else {}
    except Exception as error:  # transformers and safetensors raise bare exceptions for damaged files
        raise ConfigError(
            f"{folder}: not a sound checkpoint ({type(error).__name__}: {error}); delete it and run the same command "
            "again"
        ) from None
    model = use_our_parts(model.eval())
    for i, bias_E in biases.items():
        routers(model)[int(i)].bias = bias_E
    return model


def save_model(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a plain transformers checkpoint, of `weights` where the model is divided and holds only a part.

    Stock models ignore what they do not know: selection biases, which lie beside it, and a gate that is not softmax and
    routing by position, which its `config.json` names.
    """
    model.save_pretrained(folder, state_dict=weights)
    biases = {str(i): router.bias for i, router in enumerate(routers(model)) if router.bias is not None}
    if biases:
        save_file(biases, folder / BIAS_FILE)
