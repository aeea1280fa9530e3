"""The operator on DTensors, whose channels may be cut over ranks."""
