"""Global batches whose right answer is known. All have two layers and fp64 inputs, and none is drawn at random."""

import torch
from torch import Tensor

from moe.conformance.kit import Batch

# L layers, S sequences, B blocks of a sequence, N tokens of a block, E experts, K choices

NUM_LAYERS = 2
NUM_EXPERTS = 8
BLOCK_TOKENS = 16


def uniform(top_k: int = 2) -> Batch:
    """Every expert is chosen equally often, with all probability on the choices."""
    return _batch(_cycle(top_k).expand(NUM_LAYERS, 4, BLOCK_TOKENS, top_k), margin=60.0)


def collapsed(*first_experts: int, top_k: int = 2) -> Batch:
    """In every layer all tokens choose the same K experts from `first_experts[layer]` on, with all probability."""
    start_L111 = torch.tensor(first_experts).view(-1, 1, 1, 1)
    return _batch((start_L111 + torch.arange(top_k)).expand(NUM_LAYERS, 4, BLOCK_TOKENS, top_k), margin=60.0)


def copies(num_sequences: int) -> Batch:
    """The same sequence over and over, with some experts chosen more often than others: any split is like the other."""
    return _batch(_skewed().expand(NUM_LAYERS, num_sequences, BLOCK_TOKENS, 2), margin=1.5)


def graded(num_sequences: int, blocks: int = 1) -> Batch:
    """Equal choices in every block of every sequence, but from sequence to sequence with more probability on them: f is
    the same wherever it is counted, and P is not."""
    choices = _skewed().expand(NUM_LAYERS, num_sequences, BLOCK_TOKENS, 2).repeat(1, 1, blocks, 1)
    return _batch(choices, margin=torch.linspace(1.0, 4.0, num_sequences).view(-1, 1, 1))


def padded(valid_blocks: list[int]) -> Batch:
    """`graded` sequences of as many valid blocks as said, filled up to one length with tokens that choose the same two
    experts."""
    blocks = max(valid_blocks)
    batch = graded(len(valid_blocks), blocks)
    mask_SN = (torch.arange(blocks) < torch.tensor(valid_blocks)[:, None]).repeat_interleave(BLOCK_TOKENS, dim=1)
    padding_LSNE = _logits(torch.tensor([0, 1]).expand(*batch.hidden_LSNE.shape[:3], 2), 2.0)
    hidden_LSNE = torch.where(mask_SN[..., None], batch.hidden_LSNE, padding_LSNE)
    return Batch(hidden_LSNE, mask_SN, batch.top_k)


def domains(order: list[int]) -> Batch:
    """Sequences of one domain each: all tokens of domain d choose experts 2d and 2d + 1, in the next layer the two
    after."""
    first_LS = 2 * torch.tensor(order) + 2 * torch.arange(NUM_LAYERS)[:, None]
    choices = (first_LS[..., None, None] + torch.arange(2)) % NUM_EXPERTS
    return _batch(choices.expand(-1, -1, BLOCK_TOKENS, -1), margin=1.5)


def _cycle(top_k: int) -> Tensor:
    return (top_k * torch.arange(BLOCK_TOKENS)[:, None] + torch.arange(top_k)) % NUM_EXPERTS


def _skewed() -> Tensor:
    """[L, 1, N, 2]: squares favour some residues; the second layer favours others."""
    token_N = torch.arange(BLOCK_TOKENS)
    first_N = token_N**2 % NUM_EXPERTS
    second_N = (first_N + 1 + token_N % 3) % NUM_EXPERTS
    layer_L111 = torch.arange(NUM_LAYERS).view(-1, 1, 1, 1)
    return (torch.stack([first_N, second_N], dim=1) + layer_L111) % NUM_EXPERTS


def _batch(choices_LSNK: Tensor, margin: float | Tensor) -> Batch:
    mask_SN = torch.ones(choices_LSNK.shape[1:3], dtype=torch.bool)
    return Batch(_logits(choices_LSNK, margin), mask_SN, choices_LSNK.shape[-1])


def _logits(choices_LSNK: Tensor, margin: float | Tensor) -> Tensor:
    """[L, S, N, E]: `margin` above the others for the chosen, on a small ripple that is the same in every sequence."""
    num_layers, _, num_tokens, _ = choices_LSNK.shape
    chosen_LSNE = torch.zeros(*choices_LSNK.shape[:3], NUM_EXPERTS, dtype=torch.float64).scatter_(3, choices_LSNK, 1.0)
    block = num_layers * BLOCK_TOKENS * NUM_EXPERTS
    ripple = 0.2 * torch.arange(block, dtype=torch.float64).sin().view(num_layers, 1, BLOCK_TOKENS, NUM_EXPERTS)
    return margin * chosen_LSNE + ripple.repeat(1, 1, num_tokens // BLOCK_TOKENS, 1)
