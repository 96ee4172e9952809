"""Serve the heads of a store over HTTP."""
