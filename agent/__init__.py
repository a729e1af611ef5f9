"""What runs on a machine: the agent, its keeper, and the hosts that run components."""

__version__ = "0.1.0"
