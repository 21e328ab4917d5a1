//! Names of files inside a checkpoint: names, not paths.
