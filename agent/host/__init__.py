"""The component host: one replica, one process."""
