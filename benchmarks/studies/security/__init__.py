"""Attack headkit: fuzzed inputs, killed writers, a store that hangs, and hostile clients."""
