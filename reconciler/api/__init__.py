"""The controller's HTTP API: what it knows, and the few things a person may ask of it."""
