"""`tdie`: the command line. Each command is a thin edge; what it shows is made by pure functions."""
