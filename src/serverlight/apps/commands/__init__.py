"""One module for each command; whatever is slow to import is imported when the command runs."""
