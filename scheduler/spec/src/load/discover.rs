//! Which files a stack is made of, the folder its paths count from, its variables and its name.

use super::{Loader, MAX_ENV_FILE};
use crate::code;
use crate::dotenv::{self, Format};
use crate::environment::Environment;
use crate::interpolate::expand;
use crate::node::{Node, VariableOrigin};
use crate::paths::{join, parent};
use crate::problem::Problem;
use crate::span::{Span, offset};

/// The usual names in orch's order: its own first, then Compose's.
pub const STACK_FILE_NAMES: [&str; 6] =
    ["stack.yaml", "stack.yml", "compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
/// A file of such a name beside the first one is put on top of it, unless files are named.
pub const OVERRIDE_FILE_NAMES: [&str; 6] = [
    "stack.override.yaml",
    "stack.override.yml",
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// What a stack is made of.
#[derive(Debug, Default)]
pub(super) struct Project {
    pub(super) files: Vec<String>,
    pub(super) folder: String,
    pub(super) environment: Environment,
    pub(super) name: String,
}

impl Loader<'_> {
    pub(super) fn discover(&mut self) -> Option<Project> {
        let request = self.request;
        let here = request.working_dir.as_str();
        let absolute = |path: &String| if path == "-" { path.clone() } else { join(here, path) };
        let mut files: Vec<String> = request.files.iter().map(absolute).collect();
        let given = request.project_directory.as_ref().map(absolute);
        let mut environment = Environment::of_process(&request.environment);
        let folder_of = |files: &[String]| {
            files.first().filter(|file| *file != "-").map_or_else(|| here.to_owned(), |file| parent(file).to_owned())
        };
        let mut folder = given.clone().unwrap_or_else(|| folder_of(&files));
        self.project_environment(&mut environment, &folder);

        if files.is_empty() {
            if let Some(list) = environment.get("COMPOSE_FILE").filter(|list| !list.is_empty()) {
                let separator = environment.get("COMPOSE_PATH_SEPARATOR").unwrap_or(":").to_owned();
                files = list.split(&*separator).filter(|file| !file.is_empty()).map(|file| join(here, file)).collect();
            } else {
                files = self.search(&folder)?;
            }
            if given.is_none() {
                let found = folder_of(&files);
                if found != folder {
                    folder = found;
                    // The one beside the file, below what was read before.
                    self.default_env_file(&mut environment, &folder);
                }
            }
        }
        if let Some(remote) = files.iter().find(|file| file.contains("://") || file.contains(":/oci")) {
            self.report.add(Problem::error(code::REMOTE, format!("{remote} is not a local file")));
            return None;
        }
        Some(Project { files, folder, environment, name: String::new() })
    }

    fn project_environment(&mut self, environment: &mut Environment, folder: &str) {
        let here = &self.request.working_dir;
        let mut named: Vec<String> = self.request.env_files.clone();
        if named.is_empty()
            && let Some(list) = environment.get("COMPOSE_ENV_FILES").filter(|list| !list.is_empty())
        {
            named = list.split(',').map(str::to_owned).collect();
        }
        if named.is_empty() {
            self.default_env_file(environment, folder);
            return;
        }
        let paths: Vec<String> = named.iter().map(|file| join(here, file)).collect();
        self.env_files_below(environment, &paths, None);
    }

    fn default_env_file(&mut self, environment: &mut Environment, folder: &str) {
        let disabled =
            environment.get("COMPOSE_DISABLE_ENV_FILE").is_some_and(|text| matches!(text, "1" | "true" | "TRUE"));
        let path = join(folder, ".env");
        if !disabled && self.source.is_file(&path) {
            self.env_files_below(environment, &[path], None);
        }
    }

    /// Adds the variables of the files below what is there; among the files a later one wins.
    pub(super) fn env_files_below(&mut self, environment: &mut Environment, paths: &[String], asked: Option<Span>) {
        let mut layer = Environment::default();
        for path in paths {
            for (assignment, span) in self.env_file(path, Format::Dotenv, asked, &|name| {
                environment.get(name).or_else(|| layer.get(name)).map(str::to_owned)
            }) {
                layer.set(&assignment.key, &assignment.value, VariableOrigin::File(span));
            }
        }
        for (name, value, origin) in layer.iter() {
            environment.add_below(name, value, origin);
        }
    }

    /// Reads one environment file; what is wrong with it is reported.
    pub(super) fn env_file(
        &mut self,
        path: &str,
        format: Format,
        asked: Option<Span>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Vec<(dotenv::Assignment, Span)> {
        let Some(file) = self.read(path, MAX_ENV_FILE, asked) else { return Vec::new() };
        let text = self.files.get(file).text.clone();
        let span = |range: &std::ops::Range<usize>| Span { file, start: offset(range.start), end: offset(range.end) };
        match dotenv::parse(&text, format, lookup) {
            Ok(list) => list.into_iter().map(|assignment| (assignment.clone(), span(&assignment.range))).collect(),
            Err(error) => {
                self.report.add(
                    Problem::error(
                        code::ENV_FILE_SYNTAX,
                        format!("line {} of an environment file: {}", error.line, error.message),
                    )
                    .at(span(&error.range), "")
                    .hint("a line is `KEY=VALUE`; values with blanks or `#` may be put in quotes"),
                );
                Vec::new()
            }
        }
    }

    /// Looks for the usual names here and in the folders above.
    fn search(&mut self, start: &str) -> Option<Vec<String>> {
        let mut folder = start;
        loop {
            let found: Vec<String> = STACK_FILE_NAMES
                .iter()
                .map(|name| join(folder, name))
                .filter(|path| self.source.is_file(path))
                .collect();
            if let Some(first) = found.first() {
                if found.len() > 1 {
                    self.report.add(
                        Problem::warning(
                            code::SEVERAL_FILES,
                            format!("several stack files in {folder}; using {first}"),
                        )
                        .note(format!("also there: {}", found[1..].join(", ")))
                        .hint("name the one you mean with `-f`"),
                    );
                }
                let mut files = vec![first.clone()];
                files.extend(
                    OVERRIDE_FILE_NAMES.iter().map(|name| join(folder, name)).find(|path| self.source.is_file(path)),
                );
                return Some(files);
            }
            let above = parent(folder);
            if above == folder {
                self.report.add(
                    Problem::error(code::NO_STACK_FILE, format!("no stack file in {start} or in a folder above it"))
                        .note(format!("looked for: {}", STACK_FILE_NAMES.join(", ")))
                        .hint("name one with `-f FILE`"),
                );
                return None;
            }
            folder = above;
        }
    }

    /// The project's name: the command line's, the environment's, the file's, or the folder's.
    pub(super) fn name(&mut self, project: &mut Project, parsed: &[(String, Vec<Node>)]) {
        let given = self.request.project_name.as_deref().or_else(|| project.environment.get("COMPOSE_PROJECT_NAME"));
        if let Some(name) = given.filter(|name| !name.is_empty()) {
            if normal_name(name) != name {
                self.report.add(
                    Problem::error(
                        code::PROJECT_NAME,
                        format!(
                            "invalid project name \"{name}\": must consist only of lowercase alphanumeric characters, \
                             hyphens, and underscores as well as start with a letter or number"
                        ),
                    )
                    .hint(format!("use `{}`", normal_name(name))),
                );
            }
            project.name = name.to_owned();
            return;
        }
        let written = parsed
            .iter()
            .rev()
            .flat_map(|(_, documents)| documents.iter().rev())
            .find_map(|document| document.get("name"));
        if let Some(node) = written
            && let Some(text) = node.as_text()
        {
            let expanded = expand(text, &|name| project.environment.get(name));
            project.name = normal_name(&expanded.map_or_else(|_| String::new(), |expansion| expansion.text));
        }
        if project.name.is_empty() {
            project.name = normal_name(project.folder.rsplit('/').next().unwrap_or_default());
        }
        if project.name.is_empty() {
            self.report.add(
                Problem::error(code::PROJECT_NAME, "project name must not be empty")
                    .hint("give one with `-p NAME`, or as `name:` at the top of the file"),
            );
        }
    }
}

/// Lower case, without what a name must not have.
fn normal_name(text: &str) -> String {
    let lower = text.to_lowercase();
    let kept: String =
        lower.chars().filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')).collect();
    kept.trim_start_matches(['_', '-']).to_owned()
}
