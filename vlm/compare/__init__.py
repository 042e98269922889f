"""`vlm compare`: a grid of recipes, trained on one budget, each cell in a process of its own."""
