"""From a spec to a running job: the script's text, the schedulers (Slurm, and this machine), and the table of job states."""
