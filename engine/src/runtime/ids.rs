//! The ids of a container that has a user namespace of its own.

use serde::{Deserialize, Serialize};

/// 65 536 ids of the host that one container has for its own: id `n` inside is `first + n` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id of root inside.
    pub first: u32,
}

impl IdRange {
    /// Ids of a range: all that 16 bits name, `nobody` (65534) among them.
    pub const LENGTH: u32 = 1 << 16;

    /// The host's id of an id inside; `None` for one that the container does not have.
    #[must_use]
    pub fn outside(self, inside: u32) -> Option<u32> {
        if inside < Self::LENGTH { self.first.checked_add(inside) } else { None }
    }

    /// The id inside of an id of the host; `None` for one that is not of this range.
    #[must_use]
    pub fn inside(self, outside: u32) -> Option<u32> {
        outside.checked_sub(self.first).filter(|inside| *inside < Self::LENGTH)
    }
}
