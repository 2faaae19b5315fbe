"""The paper's effects: differences and recovered shares of its printed perplexities, in nats per token.

ln of a ratio of two Avg PPL; one run each, so no error is known. Derived from `paper.quoted`, so no number is repeated.
"""

import math

import pandas as pd

from moe.config import RunConfig, TrainConfig, window_sequences
from moe.report.paper import LARGE, MIDDLE, SMALL, named_items, quoted
from moe.report.records import Records
from moe.report.table import Table
from moe.report.text import signed

NOT_PRINTED = "–"
_NEVER, _ALWAYS = ("no switch", "2"), ("no switch", "512")
_EFFECTS = (  # item, comparison, model, tokens, method and Balance BSZ of the two rows
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
    ("Table 2", "shuffle − micro", SMALL, "120B", ("shuffle", "4 drawn from 512"), ("micro", "4")),
    ("Table 2", "shuffle − micro", SMALL, "400B", ("shuffle", "2 drawn from 512"), ("micro", "2")),
    ("Table 2", "global − micro", SMALL, "120B", ("global", "512"), ("micro", "4")),
    ("Table 2", "global − micro", SMALL, "400B", ("global", "512"), ("micro", "2")),
    ("Table 3", "2 → 512 at 10k − never", SMALL, "400B", ("switch at 10k", "2 -> 512"), _NEVER),
    ("Table 3", "2 → 512 at 30k − never", SMALL, "400B", ("switch at 30k", "2 -> 512"), _NEVER),
    ("Table 3", "2 → 512 at 50k − never", SMALL, "400B", ("switch at 50k", "2 -> 512"), _NEVER),
    ("Table 3", "512 → 2 at 50k − never", SMALL, "400B", ("switch at 50k", "512 -> 2"), _NEVER),
    ("Table 3", "512 → 2 at 50k − 512", SMALL, "400B", ("switch at 50k", "512 -> 2"), _ALWAYS),
    ("Table 3", "512 from the start − never", SMALL, "400B", _ALWAYS, _NEVER),
    ("Table 4", "0.001 − 0.008, BSZ 4", SMALL, "120B", ("weight 0.001", "4"), ("weight 0.008", "4")),
    ("Table 4", "0.004 − 0.008, BSZ 4", SMALL, "120B", ("weight 0.004", "4"), ("weight 0.008", "4")),
    ("Table 4", "512 − 4, weight 0.008", SMALL, "120B", ("weight 0.008", "512"), ("weight 0.008", "4")),
    ("Table 5", "hybrid − global", LARGE, "120B", ("buffer + 1 % micro", "128"), ("LBL+buffer", "128")),
    ("Table 5", "hybrid − micro", LARGE, "120B", ("buffer + 1 % micro", "128"), ("LBL", "8")),
    ("Table 5", "global − micro", LARGE, "120B", ("LBL+buffer", "128"), ("LBL", "8")),
)
_ROLES = {
    "micro": [("LBL", "2"), ("LBL", "4"), ("LBL", "8"), ("LBL", "16"), ("micro", "2"), ("micro", "4"), _NEVER],
    "global": [("LBL+sync", "512"), ("global", "512"), _ALWAYS],
    "buffer": [("LBL+buffer", "128")],
    "aux-free micro": [("aux-free", "4")],
    "aux-free global": [("aux-free", "512")],
    "shuffle": [("shuffle", "4 drawn from 512"), ("shuffle", "2 drawn from 512")],
    "micro → global at 10 %": [("switch at 10k", "2 -> 512")],
    "micro → global at 30 %": [("switch at 30k", "2 -> 512")],
    "micro → global at 50 %": [("switch at 50k", "2 -> 512")],
    "global → micro at 50 %": [("switch at 50k", "512 -> 2")],
    "hybrid": [("buffer + 1 % micro", "128")],
}
"""What a row of the paper is, where a run of ours can be the same."""
_ROLE_OF = {row: role for role, rows in _ROLES.items() for row in rows}
_ROLE_OF |= {(f"weight {weight}", "4"): f"micro {weight}" for weight in ("0.001", "0.004", "0.008")}
_ROLE_OF |= {("weight 0.008", "512"): "global 0.008"}
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

    8.038 for 512 and 8.167 for 4 sequences give ln(8.038 / 8.167) = -0.0159. `first` and `second` are the roles of the
    two rows, empty where no run of ours can be the same.
    """
    losses, rows = _log_perplexities(), []
    for name in named_items(text):
        for item, comparison, model, tokens, *pair in _EFFECTS:
            if item == name:
                a, b = (losses[(item, model, tokens, *row)] for row in pair)
                # Table 5 has the buffer as its global arm.
                roles = [_ROLE_OF.get(row, "") for row in pair]
                roles = ["global" if item == "Table 5" and role == "buffer" else role for role in roles]
                rows.append((item, comparison, model, tokens, *roles, a - b))
    columns = ["item", "comparison", "model", "tokens", "first", "second", "nats"]
    return pd.DataFrame(rows, columns=columns).assign(status="quoted")


def effect_table() -> Table:
    """Every effect that is derived from the paper."""
    frame = effects(" ".join(dict.fromkeys(item for item, *_ in _EFFECTS))).drop(columns=["first", "second"])
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


def quoted_contrast(records: Records, experiment: str, first: str, second: str, measure: str = "heldout_nats") -> str:
    """What the paper prints for two arms of an experiment, in the items that the experiment names."""
    if measure != "heldout_nats":
        return NOT_PRINTED
    configs = (records.run(experiment, arm).config for arm in (first, second))
    terms = records.table.settings.get("balance", {}).get("terms") or [{}]
    return quoted_effect(records.table.experiments[experiment].paper, *configs, weight=terms[0].get("weight"))


def quoted_effect(text: str, first: RunConfig, second: RunConfig, *, weight: float | None) -> str:
    """What the items that `text` names print for the comparison of two runs, in nats; "–" where they print none.

    Runs stand for rows of the paper by their role in it, and differ in terms, bias and gate alone. `weight`: that of
    the scale, which stands for the paper's, None for any; its sweep of weights (Table 4) is met by equal weights alone.
    """
    pairs = [(_role(first, weight), _role(second, weight)), (_weighted_role(first), _weighted_role(second))]
    pairs = [(a, b) for a, b in pairs if a and b and a != b]
    if not pairs or _others(first) != _others(second):
        return NOT_PRINTED
    found: dict[str, list[str]] = {}
    for row in effects(text).itertuples():
        for sign, pair in ((1, (row.first, row.second)), (-1, (row.second, row.first))):
            if pair in pairs:
                place = f"{signed(sign * row.nats)} ({row.model.split('-')[0]}, {row.tokens})"
                found.setdefault(row.item, []).append(place)
    return "; ".join(f"{item}: {', '.join(places)}" for item, places in found.items()) or NOT_PRINTED


def _others(config: RunConfig) -> RunConfig:
    """The run without what its role tells, its seed, and how a batch is divided, which the buffer depends on."""
    balance = config.balance.model_copy(update={"terms": (), "bias": None})
    train = config.train.model_copy(update={"sequences_per_pass": None})
    model = config.model.model_copy(update={"gate": "softmax"})
    return config.model_copy(update={"balance": balance, "train": train, "model": model, "seed": 0})


def _weighted_role(config: RunConfig) -> str:
    """Which row of the paper's sweep of weights a run stands for; empty where it is none."""
    terms = config.balance.terms
    role = _role(config, None) if len(terms) == 1 else ""
    return f"{role} {terms[0].weight:g}" if role in ("micro", "global") else ""


def _role(config: RunConfig, weight: float | None) -> str:
    """Which row of the paper a run stands for, in the words of `_ROLES`; empty where it prints none. The paper's loss
    comes with a softmax gate, its bias with a sigmoid one."""
    terms, bias = config.balance.terms, config.balance.bias
    scopes = [_scope(window_sequences(item, config.train), config.train) for item in (bias, *terms) if item]
    if not all(scopes) or (bias and terms) or config.model.gate != ("sigmoid" if bias else "softmax"):
        return ""
    if terms and weight is not None and not math.isclose(terms[0].weight, weight):
        return ""
    if bias:
        return f"aux-free {scopes[0]}"
    if len(terms) == 1 and (terms[0].start_step, terms[0].end_step) == (0, None):
        kinds = {("exact", False): scopes[0], ("exact", True): "shuffle"}
        kinds |= {("prefix", False): "buffer"} if scopes[0] == "global" else {}
        return kinds.get((terms[0].estimator, terms[0].shuffled), "")
    if len(terms) == 2:
        before, after = terms
        if before.weight == after.weight and before.end_step == after.start_step != 0:
            return f"{scopes[0]} → {scopes[1]} at {100 * after.start_step / config.train.steps:.0f} %"
        # Its hybrid adds the second term at a third of the steps.
        third = abs(after.start_step / config.train.steps - 1 / 3) < 0.01
        added = third and (before.start_step, before.end_step, after.end_step) == (0, None, None)
        if added and scopes == ["global", "micro"] and math.isclose(after.weight, 0.01 * before.weight):
            return "hybrid"
    return ""


def _scope(window: int, train: TrainConfig) -> str:
    return "global" if window == train.batch_sequences else "micro" if window <= train.micro_sequences else ""


def _log_perplexities() -> dict[tuple[str, ...], float]:
    """ln Avg PPL by item, model, tokens, method and Balance BSZ."""
    frame = quoted()
    frame = frame[frame["measure"] == "Avg PPL"]
    return {tuple(row[:5]): math.log(row[6]) for row in frame.itertuples(index=False)}
