"""Three claims of the committed report, recomputed from its raw records without a line of this package.

`pytest -rP tests/report/test_recomputed.py` prints them.
"""

import json
import math
from pathlib import Path
from statistics import mean, stdev

import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "cpu"
ROWS = json.loads((REFERENCE / "runs.json").read_text())["runs"]


def loss(run):
    """Held-out nats per token, mean over domains."""
    record = json.loads((REFERENCE / "runs" / run / "evaluation.json").read_text())
    return mean(domain["nats"] for domain in record["heldout"].values())


def information(run):
    """Mutual information of domain and expert in nats, domains weighted alike, mean over layers."""

    def entropy(shares):
        return -sum(share * math.log(share) for share in shares if share > 0)

    table = pq.read_table(REFERENCE / "runs" / run / "routing.parquet").to_pandas()
    found = []
    for _, layer in table.groupby("layer"):
        tokens = layer.pivot(index="domain", columns="expert", values="tokens")
        shares = tokens.div(tokens.sum(axis=1), axis=0)
        found.append(entropy(shares.mean()) - mean(entropy(row) for row in shares.to_numpy()))
    return mean(found)


def values(experiment, arm, measure):
    """The measure of every seed."""
    return {row["seed"]: measure(row["run"]) for row in ROWS if (row["experiment"], row["arm"]) == (experiment, arm)}


@pytest.mark.parametrize(("name", "measure"), [("heldout_nats", loss), ("information", information)])
def test_the_headline_s_differences_are_those_of_its_raw_records(name, measure):
    first, second = (values("balance_window", arm, measure) for arm in ("global", "1 sequence"))
    differences = [first[seed] - second[seed] for seed in first]
    half = stats.t.ppf(0.975, len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    middle = mean(differences)
    print(f"global - 1 sequence, {name}: {middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}]")
    table = pd.read_csv(REFERENCE / "tables" / "balance_window-predictions.csv").set_index("measure")
    row = table[(table["first"] == "global") & (table["second"] == "1 sequence")].loc[name]
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (middle, middle - half, middle + half), rel=1e-5
    )


def test_the_share_of_the_gain_that_drawn_tokens_recover_is_that_of_the_raw_records():
    start, drawn, end = (values("shuffle", arm, loss) for arm in ("1 sequence", "shuffled 1 sequence", "global"))
    share = mean(start[seed] - drawn[seed] for seed in start) / mean(start[seed] - end[seed] for seed in start)
    print(f"shuffled 1 sequence recovers {share:.1%}")
    table = pd.read_csv(REFERENCE / "tables" / "shuffle-recovery.csv").set_index("arm")
    assert table.loc["shuffled 1 sequence", "share"] == pytest.approx(share, rel=1e-5)
