"""Pure frozen vocabulary of the controller: documents, desired state, observed state, plan. No I/O, no clock."""
