"""Documents collected, filtered and deduplicated, and the chunks that they become."""
