//! ST018: the system refuses to read a file.

use crate::{Check, Rule, Severity};

pub(crate) static RULE: Rule = Rule {
    id: "ST018",
    name: "file-unreadable",
    severity: Severity::Error,
    since: "0.1.0",
    summary: "the system refuses to read a file",
    doc: DOC,
    check: Check::Problems(&["io", "io_tensor", "io_changed", "out_of_memory"]),
};

const DOC: &str = "\
## What it checks
Every file can be opened and read to its end, and stays the same while it is read.

## Why it matters
A symlink whose target is gone (an emptied Hub cache), a file of another user, a disk that fails, a download that is still running:
`FileNotFoundError: No such file or directory`, `PermissionError`, `OSError: [Errno 5] Input/output error`, or a crash with SIGBUS where
the file is mapped.

## What to do
Look at the file with `ls -lL`; let a running download finish; fetch it again if its target is gone.

## References
- specs/container/checkpoint.md, P2 and C7
";
