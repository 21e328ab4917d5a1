//! Publishing a finished job: fsync, rename, fsync of the directory.
