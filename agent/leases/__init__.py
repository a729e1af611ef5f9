"""Leases: at most one process of a replica anywhere. One Consul session a node, one lock a replica, and a deadline of our own."""
