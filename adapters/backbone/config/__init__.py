"""The configuration of a model: its arguments, what timm saved with it, and its input size."""
