"""Figures over pictures and masks: how well a garment was put on, and what a mask gives away."""
