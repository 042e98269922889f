"""What a model will see of its data: samples measured, and shown on a page."""
