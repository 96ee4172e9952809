"""``headkit compare``: one head per backbone, accuracy against latency."""
