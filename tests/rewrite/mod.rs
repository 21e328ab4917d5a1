//! Writing jobs: plans, faults, kills and resumption.
