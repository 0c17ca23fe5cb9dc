"""What makes the miniature in the package, and its picture; each by the command in its head."""
