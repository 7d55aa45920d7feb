//! Controllers: each a plan from what is observed to what to do, run by one shared runner.
