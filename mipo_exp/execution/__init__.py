"""Who computes a shard: this process, several, Ray's workers; progress."""
