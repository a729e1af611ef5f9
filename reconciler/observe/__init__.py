"""Consul and the agents' reports → ObservedState. Nothing here decides what should run."""
