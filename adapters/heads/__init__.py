"""Heads: the head file, the kinds of heads, the tasks, and attaching a head to a timm model."""
