"""What the command ``prepare`` is made of: plan, batch function, engines, selection over all rows, output."""
