"""hybridps: a parameter server for huge sparse embedding tables."""
