"""Speed and memory of the ops on this machine, each form checked against float64 before it is timed."""
