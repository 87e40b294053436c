//! What can be asked for to go wrong, and when it does.

use std::time::Duration;

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Of a file or a directory: opened, read, listed, asked for its length, locked.
    Read,
    /// Of a file: written, cut, extended.
    Write,
    /// Of names: a file or directory made, renamed, removed.
    Name,
    /// Of a file or a directory.
    Sync,
}

impl Operation {
    /// Tells whether such an operation changes something.
    pub(super) fn is_change(self) -> bool {
        self != Operation::Read
    }
}

/// Something that goes wrong; but for `Full`, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The operation of that kind after `after` more ones fails with `errno`, without effect; a write
    /// leaves a part.
    Error {
        /// Kind of the operation.
        operation: Operation,
        /// Operations of the kind that still succeed.
        after: u64,
        /// Error of the operating system.
        errno: i32,
    },
    /// The sync of a file after `after` more ones fails, and what it was to put on stable storage is
    /// lost in part, although it can still be read for a while.
    LosingSync {
        /// Syncs of files that still succeed.
        after: u64,
        /// Error of the operating system.
        errno: i32,
    },
    /// All files together may have `room` more bytes than now.
    Full {
        /// Bytes.
        room: u64,
    },
    /// The write after `after` more ones goes to another place of the same file, and says nothing.
    Misdirected {
        /// Writes that still go where they should.
        after: u64,
    },
    /// The operation of that kind after `after` more ones takes that long.
    Slow {
        /// Kind of the operation.
        operation: Operation,
        /// Operations of the kind that are still quick.
        after: u64,
        /// How long it takes.
        pause: Duration,
    },
    /// The power is cut with the change (write, name, sync) after `after` more ones.
    PowerCut {
        /// Changes that still succeed.
        after: u64,
    },
}

/// A trouble that counts down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Armed {
    pub(super) trouble: Trouble,
    left: u64,
}

impl Armed {
    pub(super) fn new(trouble: Trouble) -> Armed {
        let left = match trouble {
            Trouble::Error { after, .. }
            | Trouble::LosingSync { after, .. }
            | Trouble::Misdirected { after }
            | Trouble::Slow { after, .. }
            | Trouble::PowerCut { after } => after,
            Trouble::Full { .. } => 0,
        };
        Armed { trouble, left }
    }

    /// Counts one more that it may happen to; tells whether it happens to this one.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        due
    }
}
