//! The stack file: text in, a typed and validated spec out, source spans kept. Pure.
