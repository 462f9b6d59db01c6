"""Where rows come from: opening a dataset, its schema, its splits and its documented rows."""
