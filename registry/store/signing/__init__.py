"""Signatures of published versions: keys, envelopes, and what a signature says."""
