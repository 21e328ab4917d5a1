//! Tiny checkpoints for tests, built in memory or in a temporary folder.
