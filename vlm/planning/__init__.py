"""`vlm plan`: what a recipe amounts to (parameters, tokens, FLOPs, memory), found on the meta device."""
