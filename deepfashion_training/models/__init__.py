"""The models that the commands load, and whether this machine has them."""
