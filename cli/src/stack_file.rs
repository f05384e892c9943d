//! Loads the stack file with the file system and environment of this process, and says what is wrong with it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use anyhow::Result;
use orch_spec::load::{LoadRequest, ReadError, Skip, Source, load as load_spec};
use orch_spec::model::{MountSpec, PortSpec, ServiceSpec, StackSpec};
use orch_spec::problem::Problem;

use crate::exit::{Exit, Failure};
use crate::settings::Settings;
use crate::{diagnostics, printer};

/// A stack file that was loaded without an error.
pub(crate) struct Loaded {
    /// What it says.
    pub spec: Arc<StackSpec>,
    /// Absolute paths of the files it was read from.
    pub files: Vec<String>,
    inner: orch_spec::load::Loaded,
}

impl Loaded {
    /// The merged model as YAML.
    pub(crate) fn canonical_yaml(&self) -> String {
        self.inner.tree.as_ref().map(orch_spec::output::to_yaml).unwrap_or_default()
    }

    /// The merged model as JSON.
    pub(crate) fn canonical_json(&self) -> String {
        let value = self.inner.tree.as_ref().map(|tree| orch_spec::output::to_json(tree, true));
        // Plain data: it always serialises.
        value.and_then(|v| serde_json::to_string_pretty(&v).ok()).map(|text| text + "\n").unwrap_or_default()
    }
}

/// The file system and standard input.
struct Disk;

impl Source for Disk {
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        if path == "-" {
            return bounded(std::io::stdin().lock(), limit);
        }
        let error = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Other(e.to_string()),
        };
        let file = std::fs::File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if metadata.is_dir() {
            return Err(ReadError::Other("it is a folder".to_owned()));
        }
        if metadata.is_file() && metadata.len() > limit as u64 {
            return Err(ReadError::TooLarge(limit));
        }
        bounded(file, limit)
    }

    fn is_file(&self, path: &str) -> bool {
        std::fs::metadata(path).is_ok_and(|m| m.is_file())
    }
}

fn bounded(from: impl Read, limit: usize) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    from.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| ReadError::Other(e.to_string()))?;
    if bytes.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
}

fn request(settings: &Settings) -> Result<LoadRequest> {
    let working_dir = current_folder()?;
    // Variables that are not UTF-8 cannot stand in a stack file.
    let environment: BTreeMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    Ok(LoadRequest {
        files: settings.files.clone(),
        working_dir,
        project_directory: settings.project_directory.as_ref().map(|d| d.to_string_lossy().into_owned()),
        project_name: settings.project_name.clone(),
        profiles: settings.profiles.clone(),
        env_files: settings.env_files.clone(),
        environment,
        ..LoadRequest::default()
    })
}

/// Loads the whole stack; `services` turns those services on that a profile keeps off.
///
/// # Errors
/// [`Exit::Usage`] after everything that is wrong has been said.
pub(crate) fn load(settings: &Settings, services: &[String]) -> Result<Loaded> {
    load_request(settings, LoadRequest { enabled: services.to_vec(), ..request(settings)? })
}

/// For `config`: only these services, with or without interpolation.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_with(settings: &Settings, services: &[String], interpolate: bool) -> Result<Loaded> {
    let skip = Skip { interpolation: !interpolate, ..Skip::default() };
    load_request(settings, LoadRequest { services: services.to_vec(), skip, ..request(settings)? })
}

fn load_request(settings: &Settings, request: LoadRequest) -> Result<Loaded> {
    let mut loaded = load_spec(&request, &Disk);
    say(&loaded, settings);
    match loaded.spec.take() {
        Some(spec) if !loaded.has_errors() => {
            Ok(Loaded { spec: Arc::new(spec), files: loaded.stack_files.clone(), inner: loaded })
        }
        _ => Err(Failure::said(Exit::Usage).into()),
    }
}

fn say(loaded: &orch_spec::load::Loaded, settings: &Settings) {
    let quiet = |p: &&Problem| p.is_error() || !settings.quiet;
    let problems: Vec<&Problem> = loaded.problems.iter().filter(quiet).collect();
    if !problems.is_empty() {
        diagnostics::say(&problems, &loaded.files, settings.color_stderr);
    }
}

/// The name of the stack: `-p`, else that of the stack file. A file that is wrong otherwise does not keep anybody from looking at, or
/// taking down, what it once started.
///
/// # Errors
/// [`Exit::Usage`] when neither gives a name.
pub(crate) fn name(settings: &Settings) -> Result<String> {
    let from_environment = std::env::var("COMPOSE_PROJECT_NAME").ok().filter(|n| !n.is_empty());
    if let Some(name) = settings.project_name.clone().or(from_environment.filter(|_| settings.files.is_empty())) {
        return Ok(name);
    }
    let loaded = load_spec(&LoadRequest { read_contents: false, ..request(settings)? }, &Disk);
    if loaded.name.is_empty() {
        say(&loaded, settings);
        return Err(Failure::said(Exit::Usage).into());
    }
    Ok(loaded.name)
}

/// The name of the stack that is meant here, if there is one: a folder without a stack file means none, and nothing is said.
///
/// # Errors
/// As [`name`], for a file that was named.
pub(crate) fn name_if_any(settings: &Settings) -> Result<Option<String>> {
    if settings.project_name.is_some() || !settings.files.is_empty() {
        return name(settings).map(Some);
    }
    let Ok(request) = request(settings) else { return Ok(None) };
    let loaded = load_spec(&LoadRequest { read_contents: false, ..request }, &Disk);
    Ok((!loaded.name.is_empty()).then_some(loaded.name))
}

/// A service from its keys as a file would have them.
///
/// # Errors
/// [`Exit::Usage`] with everything that is wrong.
pub(crate) fn service(keys: &serde_json::Value) -> Result<ServiceSpec> {
    let mut keys = keys.clone();
    // Named volumes need no declaration outside a stack: declare what is mentioned.
    let mut volumes = serde_json::Map::new();
    for mount in keys.get("volumes").and_then(|v| v.as_array()).into_iter().flatten() {
        let short = mount.as_str().and_then(|text| text.split_once(':')).map(|(source, _)| source);
        let short = short.filter(|source| !source.starts_with(['.', '/', '~']));
        let long = mount["source"].as_str().filter(|_| mount["type"] == "volume");
        if let Some(source) = short.or(long).filter(|source| !source.is_empty()) {
            volumes.insert(source.to_owned(), serde_json::json!({ "name": source }));
        }
    }
    if let Some(map) = keys.as_object_mut() {
        // The dollar signs of a command line are the shell's business, done with before we see them.
        escape_dollars(map);
    }
    let document = serde_json::json!({"name": "container", "services": {"container": keys}, "volumes": volumes});
    let text = document.to_string();
    let paths =
        keys.get("env_file").and_then(|v| v.as_array()).into_iter().flatten().filter_map(|file| file["path"].as_str());
    let env_files = paths.map(|path| Ok(std::path::absolute(path)?.to_string_lossy().into_owned()));
    let folder = current_folder()?;
    let source = Memory { text, env_files: env_files.collect::<Result<_>>()? };
    let request = LoadRequest {
        files: vec!["/command-line".to_owned()],
        project_directory: Some(folder.clone()),
        working_dir: folder,
        // What a file of variables only names is passed on.
        environment: std::env::vars().filter(|_| !source.env_files.is_empty()).collect(),
        ..LoadRequest::default()
    };
    let mut loaded = load_spec(&request, &source);
    let plain = |text: &str| {
        [" in service `container`", " of service `container`", "service `container`: "]
            .iter()
            .fold(text.to_owned(), |text, words| text.replace(words, ""))
    };
    for problem in loaded.problems.iter().filter(|p| !p.is_error()) {
        printer::say(&format!("warning: {}", plain(&problem.message)));
    }
    let errors: Vec<String> = loaded.problems.iter().filter(|p| p.is_error()).map(|p| plain(&p.message)).collect();
    if let Some(first) = errors.first() {
        return Err(Failure::usage(first.clone()).details(errors[1..].to_vec()).into());
    }
    loaded
        .spec
        .take()
        .and_then(|mut spec| spec.services.remove("container"))
        .ok_or_else(|| Failure::usage("the options make no container").into())
}

fn escape_dollars(map: &mut serde_json::Map<String, serde_json::Value>) {
    for value in map.values_mut() {
        match value {
            serde_json::Value::String(text) => *text = text.replace('$', "$$"),
            serde_json::Value::Array(list) => {
                for item in list {
                    match item {
                        serde_json::Value::String(text) => *text = text.replace('$', "$$"),
                        serde_json::Value::Object(inner) => escape_dollars(inner),
                        _ => {}
                    }
                }
            }
            serde_json::Value::Object(inner) => escape_dollars(inner),
            _ => {}
        }
    }
}

/// One document in memory; everything else is the disk's (seccomp profiles, files of variables).
struct Memory {
    text: String,
    env_files: Vec<String>,
}

impl Source for Memory {
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        if path == "/command-line" { Ok(self.text.clone().into_bytes()) } else { Disk.read(path, limit) }
    }

    fn is_file(&self, path: &str) -> bool {
        path == "/command-line"
            || (self.env_files.iter().any(|file| file == path) && std::path::Path::new(path).exists())
    }
}

/// The folder that relative paths start from.
fn current_folder() -> Result<String, Failure> {
    let folder = std::env::current_dir().map_err(|e| {
        Failure::new(Exit::Failed, format!("the current folder cannot be found: {e}"))
            .hint("it may have been removed or may not be read; change to one that is there")
    })?;
    Ok(folder.to_string_lossy().into_owned())
}

/// Published ports from `-p` options.
///
/// # Errors
/// As [`service`].
pub(crate) fn ports(texts: &[String]) -> Result<Vec<PortSpec>> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    Ok(service(&serde_json::json!({"image": "x", "ports": texts}))?.ports)
}

/// Mounts from `-v` options.
///
/// # Errors
/// As [`service`].
pub(crate) fn mounts(texts: &[String]) -> Result<Vec<MountSpec>> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    Ok(service(&serde_json::json!({"image": "x", "volumes": texts}))?.volumes)
}
