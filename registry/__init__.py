"""What there is: the catalogue of architectures, the store of published heads, and the Hub."""
