"""Second moments of what consumers read: unfolded samples, covariances, shards."""
