//! Harness, scenarios, fault injection and tidy checks.
