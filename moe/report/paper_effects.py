"""The paper's effects: differences and recovered shares of its printed perplexities, in nats per token.

ln of a ratio of two Avg PPL; one run each, so no error is known. Derived from `paper.quoted`, so no number is repeated.
"""

import math

import pandas as pd

from moe.report.paper import LARGE, MIDDLE, SMALL, named_items, quoted
from moe.report.table import Table
from moe.report.text import signed

_NEVER, _ALWAYS = ("no switch", "2"), ("no switch", "512")
_EFFECTS = (  # item, comparison, model, tokens, method and Balance BSZ of the two rows; the main one of an item first
    ("Table 1", "LBL, 512 − 4", SMALL, "120B", ("LBL+sync", "512"), ("LBL", "4")),
    ("Table 1", "LBL, 512 − 4", SMALL, "400B", ("LBL+sync", "512"), ("LBL", "4")),
    ("Table 1", "LBL, 512 − 16", MIDDLE, "400B", ("LBL+sync", "512"), ("LBL", "16")),
    ("Table 1", "LBL, 128 (buffer) − 8", LARGE, "120B", ("LBL+buffer", "128"), ("LBL", "8")),
    ("Table 1", "LBL, 32 − 4", SMALL, "120B", ("LBL+sync", "32"), ("LBL", "4")),
    ("Table 1", "buffer − sync, 128", SMALL, "400B", ("LBL+buffer", "128"), ("LBL+sync", "128")),
    ("Table 1", "aux-free, 512 − 4", SMALL, "120B", ("aux-free", "512"), ("aux-free", "4")),
    ("Table 1", "aux-free − LBL, 4", SMALL, "120B", ("aux-free", "4"), ("LBL", "4")),
    ("Table 1", "aux-free − LBL, 512", SMALL, "120B", ("aux-free", "512"), ("LBL+sync", "512")),
    ("Figure 2", "512 − 2", SMALL, "400B", ("LBL+sync", "512"), ("LBL", "2")),
    ("Figure 2", "128 − 2", SMALL, "400B", ("LBL+sync", "128"), ("LBL", "2")),
    ("Figure 2", "4 − 2", SMALL, "400B", ("LBL", "4"), ("LBL", "2")),
    ("Table 2", "shuffle − global", SMALL, "120B", ("shuffle", "4 drawn from 512"), ("global", "512")),
    ("Table 2", "shuffle − global", SMALL, "400B", ("shuffle", "2 drawn from 512"), ("global", "512")),
    ("Table 2", "global − micro", SMALL, "120B", ("global", "512"), ("micro", "4")),
    ("Table 2", "global − micro", SMALL, "400B", ("global", "512"), ("micro", "2")),
    ("Table 3", "2 → 512 at 10k − never", SMALL, "400B", ("switch at 10k", "2 -> 512"), _NEVER),
    ("Table 3", "2 → 512 at 30k − never", SMALL, "400B", ("switch at 30k", "2 -> 512"), _NEVER),
    ("Table 3", "2 → 512 at 50k − never", SMALL, "400B", ("switch at 50k", "2 -> 512"), _NEVER),
    ("Table 3", "512 → 2 at 50k − never", SMALL, "400B", ("switch at 50k", "512 -> 2"), _NEVER),
    ("Table 3", "512 from the start − never", SMALL, "400B", _ALWAYS, _NEVER),
    ("Table 4", "0.001 − 0.008, BSZ 4", SMALL, "120B", ("weight 0.001", "4"), ("weight 0.008", "4")),
    ("Table 4", "0.004 − 0.008, BSZ 4", SMALL, "120B", ("weight 0.004", "4"), ("weight 0.008", "4")),
    ("Table 4", "512 − 4, weight 0.008", SMALL, "120B", ("weight 0.008", "512"), ("weight 0.008", "4")),
    ("Table 5", "hybrid − global", LARGE, "120B", ("buffer + 1 % micro", "128"), ("LBL+buffer", "128")),
    ("Table 5", "global − micro", LARGE, "120B", ("LBL+buffer", "128"), ("LBL", "8")),
)
_SHARES = (  # item, arm, model, tokens, the rows without the gain, with all of it, and with the arm's share
    ("Table 2", "shuffle", SMALL, "120B", ("micro", "4"), ("global", "512"), ("shuffle", "4 drawn from 512")),
    ("Table 2", "shuffle", SMALL, "400B", ("micro", "2"), ("global", "512"), ("shuffle", "2 drawn from 512")),
    ("Table 3", "2 → 512 at 10k", SMALL, "400B", _NEVER, _ALWAYS, ("switch at 10k", "2 -> 512")),
    ("Table 3", "2 → 512 at 30k", SMALL, "400B", _NEVER, _ALWAYS, ("switch at 30k", "2 -> 512")),
    ("Table 3", "2 → 512 at 50k", SMALL, "400B", _NEVER, _ALWAYS, ("switch at 50k", "2 -> 512")),
    ("Table 3", "512 → 2 at 50k", SMALL, "400B", _NEVER, _ALWAYS, ("switch at 50k", "512 -> 2")),
    ("Table 5", "hybrid", LARGE, "120B", ("LBL", "8"), ("LBL+buffer", "128"), ("buffer + 1 % micro", "128")),
)


def effects(text: str) -> pd.DataFrame:
    """Effects of the items that `text` names: ln of the first row's Avg PPL over the second's, `nats` per token.

    8.038 for 512 and 8.167 for 4 sequences give ln(8.038 / 8.167) = -0.0159. The main effect of an item comes first.
    """
    losses = _log_perplexities()
    rows = [
        (item, comparison, model, tokens, losses[(item, model, tokens, *a)] - losses[(item, model, tokens, *b)])
        for name in named_items(text)
        for item, comparison, model, tokens, a, b in _EFFECTS
        if item == name
    ]
    return pd.DataFrame(rows, columns=["item", "comparison", "model", "tokens", "nats"]).assign(status="quoted")


def effect_table() -> Table:
    """Every effect that is derived from the paper."""
    frame = effects(" ".join(dict.fromkeys(item for item, *_ in _EFFECTS)))
    shown = frame.assign(nats=[signed(value) for value in frame["nats"]])
    shown = shown.rename(columns={"nats": "difference (nats/token)"})
    caption = (
        "First minus second: ln of the ratio of two Avg PPL that the paper prints; one run each, without error bars. "
        "Balance BSZ in sequences. Nothing here was measured by this suite."
    )
    return Table("paper-effects", "paper", "The paper's effects", caption, frame, shown)


def shares(text: str) -> pd.DataFrame:
    """Shares of a gain in nats that arms of the items which `text` names recover."""
    losses, rows = _log_perplexities(), []
    for name in named_items(text):
        for item, arm, model, tokens, *compared in _SHARES:
            if item == name:
                start, end, by = (losses[(item, model, tokens, *row)] for row in compared)
                rows.append((item, arm, model, tokens, (start - by) / (start - end)))
    return pd.DataFrame(rows, columns=["item", "arm", "model", "tokens", "share"]).assign(status="quoted")


def main_effects(text: str) -> str:
    """The first effect of every named item in words, or an empty text; for a cell beside a measured effect."""
    first = effects(text).drop_duplicates("item")
    return "; ".join(
        f"{row.item}: {signed(row.nats)} ({row.comparison}; {row.model}, {row.tokens})" for row in first.itertuples()
    )


def _log_perplexities() -> dict[tuple[str, ...], float]:
    """ln Avg PPL by item, model, tokens, method and Balance BSZ."""
    frame = quoted()
    frame = frame[frame["measure"] == "Avg PPL"]
    return {tuple(row[:5]): math.log(row[6]) for row in frame.itertuples(index=False)}
