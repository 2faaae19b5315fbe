"""Counts [domains, layers, experts] whose measures are known."""

import numpy as np


def uniform(domains=3, layers=2, experts=6):
    return np.full((domains, layers, experts), 10)


def disjoint(domains=3, layers=2, experts=6):
    """Every domain selects two experts of its own."""
    counts = np.zeros((domains, layers, experts))
    for d in range(domains):
        counts[d, :, 2 * d : 2 * d + 2] = 10
    return counts
