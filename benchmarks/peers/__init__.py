"""Other stores, each behind the same four calls, for the benchmarks to stand beside."""
