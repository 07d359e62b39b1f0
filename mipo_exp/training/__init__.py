"""Training a LoRA adapter on contrastive pairs."""
