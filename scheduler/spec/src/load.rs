//! From files to a spec: reading, interpolation, `include`, `extends`, merging, checking, normalisation, binding.
//!
//! The order of the stages decides many results, and is the one of the Compose specification's reference loader: each
//! document of each file is interpolated, gets its includes underneath, has its `!reset`s carried out, its `extends`
//! resolved, and is merged onto what came before, which is then checked as a whole. Only the finished stack gets
//! defaults, absolute paths, implicit dependencies, profiles and the checks across services.
//!
//! Every stage reports what it finds and goes on with the rest, so that one run shows all mistakes.

mod discover;
mod environment;
mod extends;
mod include;
mod select;

pub use discover::{OVERRIDE_FILE_NAMES, STACK_FILE_NAMES};
pub(crate) use environment::CONTENT_KEY;
pub(crate) use select::Inactive;

use crate::check::Check;
use crate::code;
use crate::environment::Environment;
use crate::interpolate::Interpolation;
use crate::merge::{apply_marks, merge, strip_marks};
use crate::model::StackSpec;
use crate::node::{Node, Value};
use crate::paths::Base;
use crate::problem::{Problem, Report};
use crate::schema::{Merge, STACK};
use crate::span::{FileId, Files, Span};
use crate::{bind, consistency, effect, impossible, normalize, yaml};
use std::collections::BTreeMap;

/// A stack file larger than this is a mistake: the largest known ones are below 100 KiB.
pub const MAX_STACK_FILE: usize = 8 << 20;
/// Environment files hold settings.
pub const MAX_ENV_FILE: usize = 1 << 20;
/// Files under files: nobody includes deeper, and every level is a call.
const MAX_INCLUDE_DEPTH: usize = 32;
/// Files that one load may include; a file reached over many ways is read each time.
const MAX_INCLUDES: u32 = 500;
/// Services on top of services: as with includes, every level is a call.
const MAX_EXTENDS_DEPTH: usize = 64;
/// Values that `extends` may copy: as many again as a whole stack may have.
const MAX_EXTENDED_NODES: usize = 200_000;
/// Secrets and configs travel in one request and lie in the replicated log.
pub const MAX_CONTENT: usize = 1 << 20;

/// The files that a load may read, handed in from outside.
pub trait Source {
    /// The content of the file at an absolute path (or `-` for standard input).
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] without reading all of it when the file has more than `limit` bytes.
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError>;

    /// Whether there is a file (no folder) at an absolute path.
    fn is_file(&self, path: &str) -> bool;
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is none.
    #[error("there is no such file")]
    Missing,
    /// It has more bytes than allowed.
    #[error("it is larger than {0} bytes")]
    TooLarge(usize),
    /// Anything else, in the words of the system.
    #[error("{0}")]
    Other(String),
}

/// What to load and how.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// `-f`, in order; empty = look for the usual names. `-` is standard input.
    pub files: Vec<String>,
    /// The folder in which the command runs, absolute.
    pub working_dir: String,
    /// `--project-directory`.
    pub project_directory: Option<String>,
    /// `-p`.
    pub project_name: Option<String>,
    /// `--profile`; those of `COMPOSE_PROFILES` are used when this is empty.
    pub profiles: Vec<String>,
    /// `--env-file`, in order.
    pub env_files: Vec<String>,
    /// Services that are on whatever their profiles say, without leaving the others out (`up SERVICE`, `run SERVICE`).
    pub enabled: Vec<String>,
    /// Services named on the command line; empty = all that are on.
    pub services: Vec<String>,
    /// Whether the dependencies of named services belong to the spec (`--no-deps` says no).
    pub with_dependencies: bool,
    /// Whether networks, volumes, secrets and configs that no service uses belong to the spec.
    pub all_resources: bool,
    /// Whether the content of secrets, configs and profiles is read; not needed for only looking at a file.
    pub read_contents: bool,
    /// The process environment.
    pub environment: BTreeMap<String, String>,
    /// Stages to leave out, for looking at a file that is not whole.
    pub skip: Skip,
}

/// Stages that can be left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skip {
    /// Checks across services.
    pub consistency: bool,
    /// Implicit network, implicit dependencies, names of resources.
    pub normalization: bool,
    /// Making paths absolute.
    pub paths: bool,
    /// Variables.
    pub interpolation: bool,
    /// Reading `env_file` and `label_file` into `environment` and `labels`.
    pub env_files: bool,
    /// Reading what `include` names.
    pub includes: bool,
    /// Rules about single resources that go beyond the kinds of their keys.
    pub values: bool,
}

impl Default for LoadRequest {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            working_dir: "/".into(),
            project_directory: None,
            project_name: None,
            profiles: Vec::new(),
            env_files: Vec::new(),
            enabled: Vec::new(),
            services: Vec::new(),
            with_dependencies: true,
            all_resources: false,
            read_contents: true,
            environment: BTreeMap::new(),
            skip: Skip::default(),
        }
    }
}

/// What came of a load.
#[derive(Debug)]
pub struct Loaded {
    /// The spec; `None` when there is an error among the problems.
    pub spec: Option<StackSpec>,
    /// Errors and warnings, in the order of files and lines.
    pub problems: Vec<Problem>,
    /// The merged tree in canonical form, for `config`. Present as far as the files could be read at all.
    pub tree: Option<Node>,
    /// The files that were read.
    pub files: Files,
    /// The project's name.
    pub name: String,
    /// The folder that relative paths count from.
    pub project_directory: String,
    /// The stack files of the command line (or those that were found), absolute.
    pub stack_files: Vec<String>,
    /// The variables of the interpolation with their values.
    pub environment: BTreeMap<String, String>,
}

impl Loaded {
    /// Whether there is an error among the problems.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(Problem::is_error)
    }
}

/// Reads a stack. Never fails as such: what is wrong is among the problems of the result.
pub fn load(request: &LoadRequest, source: &dyn Source) -> Loaded {
    let mut loader = Loader {
        request,
        source,
        files: Files::default(),
        report: Report::default(),
        extended: BTreeMap::new(),
        scopes: 0,
        extended_nodes: 0,
        expanded: 0,
    };
    let outcome = loader.run();
    let Loader { files, mut report, .. } = loader;
    report.problems.sort_by_key(|problem| problem.labels.first().map(|label| (label.span.file, label.span.start)));
    let failed = report.has_errors();
    let (spec, tree, project) = match outcome {
        Some((spec, tree, project)) => (spec.filter(|_| !failed), Some(tree), project),
        None => (None, None, discover::Project::default()),
    };
    Loaded {
        spec,
        problems: report.problems,
        tree,
        files,
        name: project.name,
        project_directory: project.folder,
        stack_files: project.files,
        environment: project.environment.iter().map(|(name, value, _)| (name.to_owned(), value.to_owned())).collect(),
    }
}

/// A path as messages name it: relative when it lies in the folder where the command runs.
fn shown_path<'p>(path: &'p str, here: &str) -> &'p str {
    if path == "-" {
        return "standard input";
    }
    path.strip_prefix(here).and_then(|rest| rest.strip_prefix('/')).filter(|rest| !rest.is_empty()).unwrap_or(path)
}

/// One load.
struct Loader<'a> {
    request: &'a LoadRequest,
    source: &'a dyn Source,
    files: Files,
    report: Report,
    /// Files that something extends from, by scope and path.
    extended: BTreeMap<(u32, String), extends::ExtendedFile>,
    scopes: u32,
    /// Values copied by `extends` so far.
    extended_nodes: usize,
    /// Bytes that variables expanded to so far.
    expanded: usize,
}

/// What a group of files is read with: the command line's, or those of one `include`.
#[derive(Clone, Debug)]
struct Scope {
    /// Distinguishes scopes, whose variables differ.
    id: u32,
    /// Folder of relative paths.
    folder: String,
    environment: Environment,
    /// Files on the way here, for cycles.
    chain: Vec<String>,
}

impl Loader<'_> {
    fn run(&mut self) -> Option<(Option<StackSpec>, Node, discover::Project)> {
        let mut project = self.discover()?;
        let mut parsed = Vec::new();
        let mut complete = true;
        for path in &project.files {
            match self.parse_file(path, None) {
                Some(documents) => parsed.push((path.clone(), documents)),
                None => complete = false,
            }
        }
        self.name(&mut project, &parsed);
        let name = project.name.clone();
        let mut scope = Scope {
            id: 0,
            folder: project.folder.clone(),
            environment: project.environment.clone(),
            chain: project.files.clone(),
        };
        scope.environment.set("COMPOSE_PROJECT_NAME", &name, crate::node::VariableOrigin::Process);
        project.environment = scope.environment.clone();
        let empty = parsed
            .iter()
            .flat_map(|(_, documents)| documents)
            .all(|document| document.is_null() || document.as_map().is_some_and(|map| map.is_empty()));
        let mut tree = self.model(parsed, &scope)?;
        if empty && complete {
            self.report.add(
                Problem::error(code::EMPTY_FILE, "empty compose file: there is nothing in it")
                    .at(tree.span, "")
                    .hint("a stack file begins with `services:` and names at least one"),
            );
        }
        let span = tree.span;
        tree.put("name", Node::text(name.as_str(), span));
        self.finish_model(&mut tree, &scope);
        if !self.request.skip.normalization {
            normalize::normalize(&mut tree, &name);
        }
        let inactive = self.apply_profiles(&mut tree, &project);
        if !self.request.skip.consistency && complete {
            let mut check = consistency::Consistency { report: &mut self.report, stack: &tree, inactive: &inactive };
            check.run();
        }
        select::drop_optional(&mut tree, &inactive);
        self.select(&mut tree);
        consistency::warn_unsupported(&mut self.report, &tree);
        effect::warn(&mut self.report, &tree);
        if !self.request.skip.consistency {
            impossible::refuse(&mut self.report, &tree);
        }
        if !self.request.skip.env_files {
            self.resolve_env_files(&mut tree, &scope);
        }
        if !complete || self.report.has_errors() {
            return Some((None, tree, project));
        }
        let mut binder = bind::Binder {
            report: &mut self.report,
            source: self.source,
            environment: &scope.environment,
            read_contents: self.request.read_contents,
        };
        let mut spec = binder.stack(&tree, &name);
        spec.inactive_services = inactive.keys().cloned().collect();
        if !self.request.all_resources {
            select::prune(&mut spec);
        }
        Some((Some(spec), tree, project))
    }

    /// Reads a file as text into the collection; the problem names the place that asked for it.
    fn read(&mut self, path: &str, limit: usize, asked: Option<Span>) -> Option<FileId> {
        let mut refuse = |code, message: String, hint: Option<String>| {
            let mut problem = Problem::error(code, message);
            if let Some(span) = asked {
                problem = problem.at(span, "asked for here");
            }
            problem.hint = hint;
            self.report.add(problem);
        };
        let shown = shown_path(path, &self.request.working_dir);
        let bytes = match self.source.read(path, limit) {
            Ok(bytes) if bytes.len() <= limit => bytes,
            Ok(_) | Err(ReadError::TooLarge(_)) => {
                refuse(code::TOO_LARGE, format!("{shown} is larger than {} KiB", limit >> 10), None);
                return None;
            }
            Err(error) => {
                refuse(code::UNREADABLE, format!("cannot read {shown}: {error}"), None);
                return None;
            }
        };
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                refuse(code::NOT_TEXT, format!("{shown} is not UTF-8 text (at byte {at})"), None);
                return None;
            }
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let known = self.files.iter().find(|(_, file)| file.path == shown && *file.text == *text).map(|(id, _)| id);
        if let Some(id) = known {
            return Some(id);
        }
        let id = self.files.add(shown, text);
        if let Some(at) = text.find('\0') {
            let start = crate::span::offset(at);
            self.report.add(
                Problem::error(code::NOT_TEXT, format!("{shown} holds a NUL byte"))
                    .at(Span { file: id, start, end: start + 1 }, "here"),
            );
            return None;
        }
        Some(id)
    }

    fn parse_file(&mut self, path: &str, asked: Option<Span>) -> Option<Vec<Node>> {
        let file = self.read(path, MAX_STACK_FILE, asked)?;
        let text = self.files.get(file).text.clone();
        yaml::parse(file, &text, &mut self.report)
    }

    /// All documents of all files merged and checked.
    fn model(&mut self, files: Vec<(String, Vec<Node>)>, scope: &Scope) -> Option<Node> {
        let mut stack: Option<Node> = None;
        for (path, documents) in files {
            let mut seen_version = false;
            for mut document in documents {
                if document.is_null() {
                    stack = stack.or(Some(Node::map(document.span)));
                    continue;
                }
                if document.as_map().is_none() {
                    self.report.add(
                        Problem::error(
                            code::NOT_A_MAPPING,
                            format!("a stack file must be a mapping at its top, not {}", document.kind_name()),
                        )
                        .at(document.span, "the top level has keys such as `services:`"),
                    );
                    continue;
                }
                self.interpolate(&mut document, scope);
                self.version(&mut document, &mut seen_version);
                self.apply_includes(&mut document, scope);
                if let Some(stack) = &mut stack {
                    apply_marks(stack, &document);
                }
                self.apply_extends(&mut document, &path, scope);
                strip_marks(&mut document);
                let mut check = Check::new(&mut self.report, &self.files);
                check.partial = true;
                let mut merged = match stack.take() {
                    Some(base) => merge(&mut check, base, document, &STACK, Merge::ByKind),
                    None => document,
                };
                check.partial = false;
                check.node(&mut merged, &STACK);
                stack = Some(merged);
            }
        }
        let start = Span { file: FileId(0), start: 0, end: 0 };
        match stack {
            Some(stack) => Some(stack),
            None if self.files.iter().next().is_some() => Some(Node::map(start)),
            None => None,
        }
    }

    fn interpolate(&mut self, node: &mut Node, scope: &Scope) {
        if self.request.skip.interpolation {
            return;
        }
        let mut interpolation = Interpolation {
            environment: &scope.environment,
            files: &self.files,
            report: &mut self.report,
            expanded: self.expanded,
            path: Vec::new(),
        };
        interpolation.tree(node);
        self.expanded = interpolation.expanded;
    }

    fn version(&mut self, document: &mut Node, seen: &mut bool) {
        let Some(entry) = document.as_map_mut().and_then(|map| map.shift_remove("version")) else { return };
        if !matches!(entry.node.value, Value::Text(_) | Value::Invalid) {
            let mut check = Check::new(&mut self.report, &self.files);
            check.path.push(crate::check::Step::Key("version".into()));
            let mut node = entry.node;
            check.wrong(&mut node, "a text");
        } else if !std::mem::replace(seen, true) {
            self.report.add(
                Problem::warning(code::OBSOLETE, "`version` is obsolete and ignored").at(entry.key, "remove this line"),
            );
        }
    }

    /// What is done once for a group of files, before it becomes part of another or the whole.
    fn finish_model(&mut self, tree: &mut Node, scope: &Scope) {
        normalize::defaults(tree);
        if !self.request.skip.values {
            let mut check = Check::new(&mut self.report, &self.files);
            consistency::single_values(&mut check, tree);
        }
        if !self.request.skip.paths {
            let home = self.request.environment.get("HOME").map(String::as_str);
            Base { folder: &scope.folder, home }.stack(tree);
        }
        normalize::resolve_environment(tree, &scope.environment);
        environment::resolve_contents(tree, &scope.environment);
    }
}
