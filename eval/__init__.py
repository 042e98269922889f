"""Metrics, tasks, the runner, reports."""
