"""A benchmark that lm-eval has and bapo does not."""

from bapo.evaluation import Benchmark, benchmark


@benchmark("arc_easy")
class ArcEasy(Benchmark):
    """The easy questions of ARC."""

    title, task = "ARC-Easy", "arc_easy"
