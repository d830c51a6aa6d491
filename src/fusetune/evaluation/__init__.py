"""What the tuned model is worth: intervals, comparisons, calibration, and the report."""
