"""A fleet on virtual time: the real loop, planner and agents between simulated edges. Pure of real clocks, nets and processes."""
