"""The small process on each node that is parent of all hosts and outlives the agent. Standard library only."""
