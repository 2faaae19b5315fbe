"""The definition of the loss as an adapter, and one way to get each property wrong."""

import torch

from moe.conformance import Adapter, Routing, Step

# L layers, T tokens, E experts


class Right(Adapter):
    """N_E Σ f_i P_i of the whole batch, per layer: f counted in advance, P over the tokens that count."""

    def begin(self, step: Step) -> None:
        super().begin(step)
        passes = [[self.count(layers) for layers in ranks] for ranks in step.look_ahead()]
        self.counts = torch.stack([torch.stack(ranks) for ranks in passes])  # [passes, ranks, L, E]

    def losses(self, pass_index: int, ranks: list[list[Routing]]) -> list[torch.Tensor]:
        found = []
        for rank, layers in enumerate(ranks):
            known = self.global_weight * self.share(self.known(pass_index, rank))
            known = known + self.micro_weight * self.share(self.counts[pass_index, rank])
            found.append(self.factor(layers) * (known * self.scores(layers)).sum())
        return found

    def mask(self, routing: Routing) -> torch.Tensor:
        return routing.mask_SN.flatten()[:, None].double()

    def count(self, layers: list[Routing]) -> torch.Tensor:
        """[L, E]"""
        one_hot = [torch.zeros_like(r.logits_TE.detach()).scatter_(1, r.selected_TK, 1.0) for r in layers]
        return torch.stack([(self.mask(r) * chosen).sum(dim=0) for r, chosen in zip(layers, one_hot, strict=True)])

    def known(self, pass_index: int, rank: int) -> torch.Tensor:
        """[L, E]: the counts that f of this share is computed from."""
        return self.counts.sum(dim=(0, 1))

    def share(self, counts_LE: torch.Tensor) -> torch.Tensor:
        return counts_LE / counts_LE.sum(dim=-1, keepdim=True)

    def scores(self, layers: list[Routing]) -> torch.Tensor:
        """[L, E]"""
        return torch.stack([(self.mask(r) * r.logits_TE.softmax(dim=-1)).sum(dim=0) for r in layers])

    def factor(self, layers: list[Routing]) -> float:
        return self.step.num_experts / (self.step.num_layers * self.step.tokens)


class SumsToK(Right):
    def share(self, counts_LE):
        return super().share(counts_LE) * self.step.top_k


class KnowsOnlyTop2(Right):
    def share(self, counts_LE):
        return super().share(counts_LE) * self.step.top_k / 2


class Capped(Right):
    def logged(self):
        return min(self.value, 3.0)

    def losses(self, pass_index, ranks):
        found = super().losses(pass_index, ranks)
        self.value = float(sum(found).detach()) + (self.value if pass_index else 0.0)
        return found


class PoolsLayers(Right):
    def share(self, counts_LE):
        return super().share(counts_LE.sum(dim=0, keepdim=True)).expand_as(counts_LE)


class TimesRanks(Right):
    def factor(self, layers):
        return super().factor(layers) * self.step.num_ranks


class LogsTimesRanks(Right):
    """The gradient is right, and what is logged is not."""

    def losses(self, pass_index, ranks):
        found = super().losses(pass_index, ranks)
        self.value = float(sum(found).detach()) + (self.value if pass_index else 0.0)
        return found

    def logged(self):
        return self.value * self.step.num_ranks


class TimesSteps(Right):
    def factor(self, layers):
        return super().factor(layers) * self.step.num_passes


class OverMicroBatchSize(Right):
    def factor(self, layers):
        return super().factor(layers) / len(layers[0].mask_SN)


class MeanOfMeans(Right):
    def factor(self, layers):
        tokens = int(layers[0].mask_SN.sum())
        return self.step.num_experts / (self.step.num_layers * tokens * self.step.num_ranks * self.step.num_passes)


class CountsPadding(Right):
    def mask(self, routing):
        return torch.ones_like(routing.mask_SN.flatten()[:, None], dtype=torch.float64)

    def factor(self, layers):
        tokens = layers[0].mask_SN.shape[1] * sum(map(sum, self.step.sizes))
        return self.step.num_experts / (self.step.num_layers * tokens)


class WeighsBySequences(Right):
    def factor(self, layers):
        share = len(layers[0].mask_SN) / sum(map(sum, self.step.sizes))
        return self.step.num_experts / (self.step.num_layers * int(layers[0].mask_SN.sum())) * share


class OneRank(Right):
    def known(self, pass_index, rank):
        return self.counts[:, rank].sum(dim=0)


class OnePass(Right):
    def known(self, pass_index, rank):
        return self.counts[pass_index].sum(dim=0)


class CountsInside(Right):
    """A running buffer that every forward of a layer adds to, recomputation too."""

    def begin(self, step):
        super().begin(step)
        self.buffer = torch.zeros(step.num_layers, step.num_experts, dtype=torch.float64)

    def inside(self, pass_index, layer, ranks):
        self.buffer[layer] += sum(self.count([routing])[0] for routing in ranks)
        return ()

    def known(self, pass_index, rank):
        return self.buffer


class CountsEvaluation(CountsInside):
    """Emptied only when the optimizer has stepped."""

    def begin(self, step):
        kept = getattr(self, "buffer", None)
        super().begin(step)
        self.buffer = self.buffer if kept is None else kept

    def end(self):
        self.buffer.zero_()


class NeverEmptied(CountsEvaluation):
    def end(self):
        pass


class Detached(Right):
    def scores(self, layers):
        return super().scores(layers).detach()


class FirstLayerOnly(Right):
    def scores(self, layers):
        scores = super().scores(layers)
        return torch.cat([scores[:1], scores[1:].detach()])


class NotFinite(Right):
    def scores(self, layers):
        return super().scores(layers) + (0 * sum(r.logits_TE.sum() for r in layers)).sqrt()


class NormalisesWeights(Right):
    def factor(self, layers):
        return super().factor(layers) / (self.global_weight + self.micro_weight)


class OneLoss(Right):
    """Takes the second weight and has no second loss."""

    def __init__(self, *, global_weight=1.0, micro_weight=0.0):
        super().__init__(global_weight=global_weight)


class Raises(Right):
    def losses(self, pass_index, ranks):
        raise NotImplementedError("later\nperhaps")
