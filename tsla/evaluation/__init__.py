"""What a trained model is worth: its accuracy, beside reference lines, in a table and a figure."""
