"""Where extraction runs: one module per executor, each with one function that extracts files."""
