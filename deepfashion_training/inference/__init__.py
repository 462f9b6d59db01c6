"""What tryon, evaluate and demo have in common: which models, which mask, and one person in one garment."""
