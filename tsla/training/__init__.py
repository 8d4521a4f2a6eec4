"""Training: one Lightning module, its optimiser, its callbacks, and the run directory they fill."""
