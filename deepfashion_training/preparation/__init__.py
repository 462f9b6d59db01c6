"""What the command ``prepare`` is made of: plan, batch function, workers, selection over all rows, account, output."""
