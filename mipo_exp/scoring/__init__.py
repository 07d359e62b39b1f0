"""Log-probabilities of responses, and the mutual information estimated from them."""
