"""Running networks over images, and scoring logits."""
