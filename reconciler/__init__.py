"""From a Git commit to running processes: source, planning, execution."""
