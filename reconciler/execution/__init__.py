"""Plan → what agents and Consul are told: leadership, numbering, node locks, the record."""
