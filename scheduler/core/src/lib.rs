//! The replicated state machine, its reconcilers and placement. Pure.
