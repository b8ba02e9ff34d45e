"""Where rows go: one file, one kind of sink."""
