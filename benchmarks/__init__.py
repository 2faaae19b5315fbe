"""Side-by-side measurements: `make bench` runs them all, each module is one question."""
