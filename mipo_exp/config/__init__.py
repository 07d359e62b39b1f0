"""The config's schema, its checks, and its secrets."""
