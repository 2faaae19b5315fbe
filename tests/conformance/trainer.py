"""Print how often the auxiliary loss is in the router gradient of Trainer's step, and in its logged loss.

Arguments: numbers of accumulation steps. Every sequence of the batch is the same, so that both should not depend on
them. Run by `torch.distributed.run`.
"""

import json
import os
import sys
import tempfile

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Look(TrainerCallback):
    """Takes the router gradient of the only optimizer step, and the loss that is logged for it."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = getattr(model, "module", model).named_parameters()
        self.gradient = torch.cat([p.grad.flatten() for name, p in named if name.endswith("mlp.gate.weight")])

    def on_log(self, args, state, control, logs, **kwargs):
        self.loss = logs.get("loss", getattr(self, "loss", None))


def train(coefficient: float, steps: int) -> Look:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "output_router_logits": True}
    config = Qwen3MoeConfig(vocab_size=64, router_aux_loss_coef=coefficient, **shape, **heads, **experts)
    tokens = torch.arange(12) * 7 % 64
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, gradient_accumulation_steps=steps, max_steps=1, logging_steps=1,
            max_grad_norm=0, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        rows = [{"input_ids": tokens, "labels": tokens}] * (steps * int(os.environ["WORLD_SIZE"]))
        look = Look()
        Trainer(Qwen3MoeForCausalLM(config), arguments, train_dataset=rows, callbacks=[look]).train()
    return look


if __name__ == "__main__":
    for steps in map(int, sys.argv[1:]):
        with_loss, without = train(1.0, steps), train(0.0, steps)
        if os.environ["RANK"] == "0":
            found = [float((with_loss.gradient - without.gradient).norm()), with_loss.loss - without.loss]
            print("found", json.dumps(found))
