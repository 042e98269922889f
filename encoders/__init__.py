"""Image views and vision encoders."""
