"""Heads on the Hugging Face Hub."""
