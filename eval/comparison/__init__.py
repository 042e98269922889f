"""Runs of a grid side by side: their figures, the paired test, plots and a report of their own."""
