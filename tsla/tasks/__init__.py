"""What is learnt: one file per task, and how its rows become batches. Knows no model."""
