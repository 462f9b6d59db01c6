"""Pictures, masks and the layout of a pair. Pure functions; nothing here loads a model."""
