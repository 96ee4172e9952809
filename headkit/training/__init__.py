"""What ``fit`` and ``tune`` share."""
