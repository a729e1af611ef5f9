"""The node API, and what every API of this project shares: problems, tokens, limits."""
