"""What became of runs: scheduler states and metrics as rows and tables."""
