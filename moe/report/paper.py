"""The paper's own values, as printed in arXiv:2501.11873: quoted, one run each, without error bars."""

import re

import pandas as pd

SMALL, MIDDLE, LARGE = "3.4B-A0.6B", "15B-A2.54B", "43B-A6.6B"

_TABLE_1 = (  # model, tokens, method, Balance BSZ, HellaSwag, MMLU, GSM8K, C-Eval, Avg PPL
    (SMALL, "120B", "LBL", 4, 62.81, 41.63, 13.57, 41.87, 8.167),
    (SMALL, "120B", "LBL+sync", 32, 63.58, 42.08, 15.01, 41.58, 8.062),
    (SMALL, "120B", "LBL+sync", 512, 63.75, 43.48, 15.31, 44.95, 8.038),
    (SMALL, "120B", "aux-free", 4, 61.99, 41.30, 12.43, 43.53, 8.521),
    (SMALL, "120B", "aux-free", 512, 63.51, 42.74, 14.18, 45.03, 8.080),
    (SMALL, "400B", "LBL", 4, 67.21, 48.97, 21.30, 49.02, 7.347),
    (SMALL, "400B", "LBL+sync", 128, 68.08, 49.02, 28.81, 49.12, 7.214),
    (SMALL, "400B", "LBL+sync", 512, 68.32, 49.84, 25.40, 51.59, 7.198),
    (SMALL, "400B", "LBL+buffer", 128, 68.18, 49.59, 24.94, 50.37, 7.199),
    (MIDDLE, "400B", "LBL", 16, 75.69, 59.99, 48.07, 64.38, 5.778),
    (MIDDLE, "400B", "LBL+sync", 512, 76.96, 60.78, 54.28, 64.31, 5.603),
    (LARGE, "120B", "LBL", 8, 75.20, 54.98, 42.08, 57.06, 5.862),
    (LARGE, "120B", "LBL+buffer", 128, 75.94, 57.30, 46.32, 57.98, 5.779),
)
_PERPLEXITY = (  # item, model, tokens, method, Balance BSZ, Avg PPL
    ("Figure 2", SMALL, "400B", "LBL", "2", 7.383),
    ("Figure 2", SMALL, "400B", "LBL", "4", 7.347),
    ("Figure 2", SMALL, "400B", "LBL+sync", "128", 7.214),
    ("Figure 2", SMALL, "400B", "LBL+sync", "512", 7.198),
    ("Figure 2", SMALL, "400B", "LBL+buffer", "128", 7.199),
    ("Table 2", SMALL, "120B", "micro", "4", 8.167),
    ("Table 2", SMALL, "120B", "global", "512", 8.038),
    ("Table 2", SMALL, "120B", "shuffle", "4 drawn from 512", 8.041),
    ("Table 2", SMALL, "400B", "micro", "2", 7.383),
    ("Table 2", SMALL, "400B", "global", "512", 7.198),
    ("Table 2", SMALL, "400B", "shuffle", "2 drawn from 512", 7.214),
    ("Table 3", SMALL, "400B", "no switch", "2", 7.383),
    ("Table 3", SMALL, "400B", "switch at 50k", "2 -> 512", 7.322),
    ("Table 3", SMALL, "400B", "switch at 30k", "2 -> 512", 7.297),
    ("Table 3", SMALL, "400B", "switch at 10k", "2 -> 512", 7.283),
    ("Table 3", SMALL, "400B", "no switch", "512", 7.199),
    ("Table 3", SMALL, "400B", "switch at 50k", "512 -> 2", 7.373),
    ("Table 4", SMALL, "120B", "weight 0.008", "4", 8.167),
    ("Table 4", SMALL, "120B", "weight 0.004", "4", 8.154),
    ("Table 4", SMALL, "120B", "weight 0.001", "4", 8.159),
    ("Table 4", SMALL, "120B", "weight 0.008", "512", 8.038),
    ("Table 5", LARGE, "120B", "LBL", "8", 5.862),
    ("Table 5", LARGE, "120B", "LBL+buffer", "128", 5.779),
    ("Table 5", LARGE, "120B", "buffer + 1 % micro", "128", 5.795),
)
_STEP_SECONDS = (
    ("Table 5", LARGE, "120B", "LBL", "8", 1.55),
    ("Table 5", LARGE, "120B", "LBL+buffer", "128", 1.64),
    ("Table 5", LARGE, "120B", "buffer + 1 % micro", "128", 1.59),
)
_SCORES = ("HellaSwag (%)", "MMLU (%)", "GSM8K (%)", "C-Eval (%)", "Avg PPL")
COLUMNS = ("item", "model", "tokens", "method", "Balance BSZ (sequences)", "measure", "value")


def quoted() -> pd.DataFrame:
    """Every value that we quote, one a row, with the item of the paper that prints it; `status` is "quoted"."""
    rows = [
        ("Table 1", model, tokens, method, str(window), measure, value)
        for model, tokens, method, window, *values in _TABLE_1
        for measure, value in zip(_SCORES, values, strict=True)
    ]
    rows += [(*head, "Avg PPL", value) for *head, value in _PERPLEXITY]
    rows += [(*head, "step time (s)", value) for *head, value in _STEP_SECONDS]
    return pd.DataFrame(rows, columns=list(COLUMNS)).assign(status="quoted")


def quoted_items(text: str) -> pd.DataFrame:
    """The quoted rows of the items that `text` names, for example "Table 1, Figures 1a and 2"."""
    frame = quoted()
    return frame[frame["item"].isin(named_items(text))].reset_index(drop=True)


def named_items(text: str) -> list[str]:
    """Items named in `text`, spelled "Table 1"; "Tables 1, 2 and Figure 4a" names Table 1, Table 2 and Figure 4."""
    items, kind = [], ""
    for word in re.findall(r"(?i)tables?|figures?|\d+", text):
        if word.isdigit():
            items.append(f"{kind} {word}")
        else:
            kind = word.capitalize().rstrip("s")
    return list(dict.fromkeys(items))


def window_curve() -> pd.DataFrame:
    """The printed points of Figure 2: Balance BSZ in sequences, Avg PPL, and whether the counts were buffered."""
    frame = quoted()
    frame = frame[frame["item"] == "Figure 2"]
    return pd.DataFrame(
        {
            "window": frame["Balance BSZ (sequences)"].astype(int),
            "perplexity": frame["value"],
            "buffer": frame["method"] == "LBL+buffer",
        }
    )


NOTES = {
    "Table 1": "micro to global lowers Avg PPL from 8.167 to 8.038 (3.4B, 120B tokens), 5.862 to 5.779 (43B)",
    "Figure 1": "no domain selects an expert above 0.15 under micro balance; many above 0.2 in SFT-Math under global",
    "Figure 2": "Avg PPL falls monotonically from 7.383 at 2 sequences to 7.198 at 512, with a knee near 128",
    "Table 2": "shuffled global counts of micro size recover 98 % (120B) and 91 % (400B) of the gain",
    "Table 3": "an earlier switch to global is better: 7.283 at 10k, 7.322 at 50k of 100k steps, 7.199 from the start",
    "Table 4": "lowering the weight under micro balance gains at most 0.013 Avg PPL",
    "Table 5": "43B: 1.55 s a step micro, 1.64 s (+5.8 %) global, 1.59 s (+2.6 %) with 1 % micro added",
    "Figure 3": "loss curves after a switch; no value is printed",
    "Figure 4": "top-K score sums are higher under global balance in every layer; no value is printed",
}
"""What each item says, in one line for captions."""
