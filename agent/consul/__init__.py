"""PUBLIC: Consul as the rest of this project sees it: a Protocol, values and typed errors."""
