"""Heads: the head file, the kinds of heads, the tasks, and how a head goes onto a timm model."""
