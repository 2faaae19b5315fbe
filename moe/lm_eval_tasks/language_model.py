"""lm-eval's view of a trained model."""

from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 1 << 16
"""Tokens that lm-eval may ask for; rotary positions have no end, so this bounds nothing but mistakes."""


class TrainedWindow(HFLM):
    """`HFLM` that scores answers within the window that the model was trained on.

    A context that does not fit before its answer loses its beginning, as `HFLM(max_length=window)` does; but an answer
    longer than the window is scored whole, where `HFLM` would give up. Generation sees the whole prompt, and is
    bounded to half a window, at most lm-eval's 256 tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, window: int, batch_size: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=LONGEST)  # type: ignore
        self.window = window

    @property
    def max_gen_toks(self) -> int:
        return min(256, max(1, self.window // 2))

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **options: Any) -> Any:
        # The last token of the answer is predicted, never read: window + 1 tokens fit.
        fitting = [(key, ctx[-max(1, self.window + 1 - len(answer)) :], answer) for key, ctx, answer in requests]
        return super()._loglikelihood_tokens(fitting, **options)
