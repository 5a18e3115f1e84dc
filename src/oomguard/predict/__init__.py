"""Say before a launch what it will take: the dry run as a child, its cache, the whole ladder."""
