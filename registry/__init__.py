"""Find architectures and heads: the catalogue, the store of published heads, and the Hub."""
