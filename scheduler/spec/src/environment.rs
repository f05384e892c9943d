//! The variables that a stack file is interpolated with, and where each of them comes from.

use crate::node::VariableOrigin;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables in layers; an earlier layer wins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    values: BTreeMap<Arc<str>, (Arc<str>, VariableOrigin)>,
}

impl Environment {
    /// The process environment.
    pub(crate) fn of_process(values: &BTreeMap<String, String>) -> Self {
        let entry = |(name, value): (&String, &String)| {
            (Arc::from(name.as_str()), (Arc::from(value.as_str()), VariableOrigin::Process))
        };
        Self { values: values.iter().map(entry).collect() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| &**value)
    }

    pub(crate) fn origin(&self, name: &str) -> VariableOrigin {
        self.values.get(name).map_or(VariableOrigin::Unset, |(_, origin)| *origin)
    }

    /// Adds a variable unless it is there already.
    pub(crate) fn add_below(&mut self, name: &str, value: &str, origin: VariableOrigin) {
        if !self.values.contains_key(name) {
            self.values.insert(name.into(), (value.into(), origin));
        }
    }

    /// Sets a variable whatever was there.
    pub(crate) fn set(&mut self, name: &str, value: &str, origin: VariableOrigin) {
        self.values.insert(name.into(), (value.into(), origin));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, VariableOrigin)> {
        self.values.iter().map(|(name, (value, origin))| (&**name, &**value, *origin))
    }
}
