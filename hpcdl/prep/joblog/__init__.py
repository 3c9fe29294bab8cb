"""What the kind `joblogs` is made of: sacct dumps and SWF traces, jobs, their histories and features."""
