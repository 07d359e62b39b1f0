"""Reading answers out of responses, and the metrics computed from them."""
