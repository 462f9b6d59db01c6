"""What made the small model and its data: run once, imported by no command."""
