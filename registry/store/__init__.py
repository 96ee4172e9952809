"""The store of published heads: versions, tags, and content addressed by its hash."""
