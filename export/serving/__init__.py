"""Serve the heads of a store over HTTP on one backbone."""
