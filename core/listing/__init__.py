"""What is read as lists: which rows, in what order, a page at a time."""
