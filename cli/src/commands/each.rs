//! Verbs of several names, as Docker does them: what becomes of one is nothing to the others. What failed is said on stderr as it fails.

use anyhow::Result;
use futures_util::StreamExt;
use orch_api::client::ClientError;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::printer;
use crate::settings::Settings;

/// How many are done at once where the order means nothing: as many as a node stops at once.
const AT_ONCE: usize = 64;

/// Does something with each name, in their order, and goes on after a failure.
///
/// # Errors
/// When one failed, said already where there are several names. The exit code is what all failures have in common, else 1.
pub(super) async fn each(
    settings: &Settings,
    names: &[String],
    mut act: impl AsyncFnMut(&str) -> Result<()>,
) -> Result<Exit> {
    let mut failures = Failures::new(names, settings.color_stderr);
    for name in names {
        failures.add(act(name).await)?;
    }
    failures.end()
}

/// The same with many names at once, for what takes its time and may be done in any order. Prints those that are done, in the order given.
///
/// # Errors
/// See [`each`].
pub(super) async fn all(settings: &Settings, names: &[String], act: impl AsyncFn(&str) -> Result<()>) -> Result<Exit> {
    let mut failures = Failures::new(names, settings.color_stderr);
    let mut done = futures_util::stream::iter(names).map(|name| act(name)).buffered(AT_ONCE);
    let mut given = names.iter();
    while let (Some(result), Some(name)) = (done.next().await, given.next()) {
        failures.add(result.map(|()| printer::line(name)))?;
    }
    failures.end()
}

/// Looks each name up and prints what was found as one JSON array.
///
/// # Errors
/// See [`each`].
pub(super) async fn inspect<T: Serialize>(
    settings: &Settings,
    names: &[String],
    mut get: impl AsyncFnMut(&str) -> Result<T>,
) -> Result<Exit> {
    let mut found = Vec::new();
    let exit = each(settings, names, async |name| {
        found.push(get(name).await?);
        Ok(())
    })
    .await;
    if !found.is_empty() {
        printer::json_pretty(&found)?;
    }
    exit
}

/// What has failed so far.
#[derive(Debug)]
pub(super) struct Failures {
    several: bool,
    color: bool,
    /// How the process is to end.
    exit: Option<Exit>,
}

impl Failures {
    /// None yet, of what is done with these names.
    pub(super) fn new(names: &[String], color: bool) -> Self {
        Self { several: names.len() > 1, color, exit: None }
    }

    /// Takes in what became of the next name.
    ///
    /// # Errors
    /// When that is the end, because it would fail with every name: a wrong option, an agent that does not answer; or there is only one.
    pub(super) fn add(&mut self, result: Result<()>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        let wrong = error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::Usage);
        let lost = error.downcast_ref::<ClientError>().is_some_and(ClientError::is_lost);
        if !self.several || wrong || lost {
            return Err(error);
        }
        let exit = printer::failure(&error, self.color);
        self.exit = Some(if self.exit.is_none_or(|before| before == exit) { exit } else { Exit::Failed });
        Ok(())
    }

    /// What to end with.
    ///
    /// # Errors
    /// When one failed; it has been said.
    pub(super) fn end(self) -> Result<Exit> {
        self.exit.map_or(Ok(Exit::Done), |exit| Err(Failure::said(exit).into()))
    }
}
