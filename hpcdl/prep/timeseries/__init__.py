"""What the kind `series` is made of: CSV files, times, windows and scaling."""
