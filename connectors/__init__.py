"""Everything between encoder features and the LLM."""
