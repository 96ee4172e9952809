"""``headkit coverage``: check the contract for every architecture and keep the record."""
