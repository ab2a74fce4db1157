"""From stored features to action unit probabilities per frame."""
