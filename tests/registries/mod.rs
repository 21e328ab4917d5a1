//! The registries test themselves: ids unique, pages present, generated documents current.
