"""Does an implementation of a load-balancing loss do what its users rely on? Measured through an adapter."""

from moe.conformance.kit import Adapter, Routing, Step

__all__ = ["Adapter", "Routing", "Step"]
