"""The models that the commands load, and whether they can be had on this machine."""
