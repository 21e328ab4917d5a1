//! What is done so far, so that an interrupted job can be continued.
