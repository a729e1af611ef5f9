"""PUBLIC: a single-process Consul API for one machine and for tests; `python -m agent.consul.embedded` starts it."""
