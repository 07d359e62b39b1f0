"""Finding, converting and loading models; the runtime."""
