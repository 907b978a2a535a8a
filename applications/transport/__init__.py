"""Transit network capacity design."""
