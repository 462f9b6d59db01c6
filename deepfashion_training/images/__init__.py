"""Garment/person pairs: schema, garment types and layout. Pure functions; nothing here loads a model."""
