"""One file a pruning method; every file here is imported by the registry."""
