"""Models of the kit inside lmms-eval."""
