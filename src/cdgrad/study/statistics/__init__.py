"""Statistics of comparisons: pure functions of arrays, which know no records."""
