//! The image store on a real disk, as root.

#![allow(clippy::unwrap_used, reason = "the lint knows test functions, but not the functions that they share")]

#[path = "image/archives.rs"]
mod archives;
#[path = "image/hostile.rs"]
mod hostile;
#[path = "image/import.rs"]
mod import;
#[path = "image/layering.rs"]
mod layering;
#[path = "image/tar.rs"]
mod tar;
#[path = "image/transfer.rs"]
mod transfer;
#[path = "image/tree.rs"]
mod tree;
