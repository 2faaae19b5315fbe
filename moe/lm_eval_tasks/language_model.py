"""lm-eval's view of a trained model."""

from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 1 << 16
"""Tokens that lm-eval may ask for; rotary positions have no end, so this bounds nothing but mistakes."""


class TrainedWindow(HFLM):
    """`HFLM` that scores answers within the window that the model was trained on.

    A context that does not fit before its answer loses its beginning, as `HFLM(max_length=window)` does; but an answer
    longer than the window is scored whole, where `HFLM` would give up. Generation sees the whole prompt, and is
    bounded to half a window, at most lm-eval's 256 tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int,
        batch_size: int,
        encoded: dict[tuple[str, str], Any] | None = None,
    ):
        """`encoded`: tokens of pairs of context and answer, kept for another model of the same tokenizer."""
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=LONGEST)  # type: ignore
        self.window = window
        self.encoded = {} if encoded is None else encoded

    @property
    def max_gen_toks(self) -> int:
        return min(256, max(1, self.window // 2))

    def _encode_pair(self, context: str, continuation: str) -> Any:
        if (context, continuation) not in self.encoded:
            self.encoded[context, continuation] = super()._encode_pair(context, continuation)
        return self.encoded[context, continuation]

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_: Any) -> Any:
        """Log-probability of each answer, and whether each of its tokens is the likeliest.

        `HFLM` takes the logits of all tokens; only those of the answers are needed.
        """
        # The last token of the answer is predicted, never read: window + 1 tokens fit.
        pairs = [(context[-max(1, self.window + 1 - len(answer)) :], answer) for _, context, answer in requests]
        inputs = [(*context, *answer[:-1]) for context, answer in pairs]
        # Answers of one token to one context have the same input.
        askers: dict[tuple[int, ...], list[int]] = {}
        for i, tokens in enumerate(inputs):
            askers.setdefault(tokens, []).append(i)
        distinct = sorted(askers, key=lambda tokens: (-len(tokens), tokens))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(distinct), self.batch_size):
            batch = distinct[start : start + self.batch_size]
            tokens_BN = pad_sequence([torch.tensor(tokens) for tokens in batch], batch_first=True).to(self.device)
            hidden_BNH = self.model.model(input_ids=tokens_BN, use_cache=False).last_hidden_state
            rows, columns, answers, owners = [], [], [], []
            for row, tokens in enumerate(batch):
                for i in askers[tokens]:
                    answer = pairs[i][1]
                    rows += [row] * len(answer)
                    columns += range(len(tokens) - len(answer), len(tokens))
                    answers += answer
                    owners.append(i)
            logits_AV = self.model.lm_head(hidden_BNH[rows, columns]).float()
            answers_A = torch.tensor(answers, device=self.device)
            nats = F.cross_entropy(logits_AV, answers_A, reduction="none")
            likeliest = logits_AV.argmax(dim=-1) == answers_A
            sizes = [len(pairs[i][1]) for i in owners]
            for i, own, hits in zip(owners, nats.split(sizes), likeliest.split(sizes), strict=True):
                results[i] = -own.sum().item(), bool(hits.all())
        return results
