//! The image store on a real disk, as root.

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
#[path = "image/tree.rs"]
mod tree;
