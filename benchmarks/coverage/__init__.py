"""``headkit coverage``: check the contract for every architecture and record the results."""
