"""Parts of the description of an exported model."""
