"""A small FLUX-Fill and a drawn wardrobe that need no network, and how they were made."""
