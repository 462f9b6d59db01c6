"""Where rows come from: opening a dataset, its documented rows, and the account of those that cannot be read."""
