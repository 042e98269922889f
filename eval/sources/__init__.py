"""Sources of samples that read the files which benchmarks come in."""
