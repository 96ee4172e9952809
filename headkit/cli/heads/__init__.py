"""The commands ``heads …``."""
