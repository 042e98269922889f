"""Data, stages, the Lightning module."""
