"""What data sets share: reading files, columns, splits, caches."""
