"""Train small changes to a backbone's own weights together with a head."""
