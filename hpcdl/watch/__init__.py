"""What watches a run on the compute nodes: one process for the attempt (`python -m hpcdl.watch`), one agent for each rank.

job script ── exec hpcdl.watch ── launcher (srun, mpirun, ibrun) ── hpcdl.watch.rank ── hpcdl.train      on every node, once a rank

The first takes the run's lock, hands a stop on to all ranks before the walltime ends, and puts the job back in the
queue. An agent tells why its rank failed, ends it when another one failed, and notices when another rank's node falls
silent. They talk through the attempt's folder only (hpcdl.attempts), so any launcher will do.
"""
