//! Hostile files: each with its expected error; every fixture truncated and bit-flipped.
