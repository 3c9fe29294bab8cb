"""Rehearsals: a few steps on the real allocation tell whether a run resumes bit for bit, and what all of it will take."""
