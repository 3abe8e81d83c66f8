"""What was measured: the table of choices, and what the raw ops ask when they run."""
