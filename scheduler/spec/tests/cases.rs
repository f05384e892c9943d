//! Runs the published Compose cases (compose-go, docker/compose, awesome-compose, the specification's own examples).
//!
//! They lie beside the checkout in `shared/cases/compose`, or where `ORCH_CASES` says. Without them the test cannot say
//! anything and reports itself as skipped; with `ORCH_REQUIRE_CASES=1` that is a failure.
//! Figures are ratchets: raise them when the loader gets better, never lower them.

use orch_spec::load::{LoadRequest, Loaded, ReadError, Skip, Source, load};
use orch_spec::output::to_json;
use orch_spec::render::render_plain;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The disk, plus files that exist only for a test.
struct Disk {
    extra: BTreeMap<String, String>,
    /// The reference's tests use a project name that its own normalisation would refuse.
    rename: bool,
}

impl Disk {
    fn plain() -> Self {
        Self { extra: BTreeMap::new(), rename: false }
    }
}

impl Source for Disk {
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        if let Some(text) = self.extra.get(path) {
            return Ok(text.clone().into_bytes());
        }
        let file = std::fs::File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ReadError::Missing,
            _ => ReadError::Other(error.to_string()),
        })?;
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|error| ReadError::Other(error.to_string()))?;
        if self.rename {
            bytes = String::from_utf8_lossy(&bytes).replace("myProject", "myproject").into_bytes();
        }
        if bytes.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes) }
    }

    fn is_file(&self, path: &str) -> bool {
        self.extra.contains_key(path) || Path::new(path).is_file()
    }
}

/// One row of the index.
struct Row {
    path: String,
    status: String,
    facts: String,
    setup: BTreeMap<String, String>,
    setup_text: String,
}

fn rows(root: &Path) -> Vec<Row> {
    let index = std::fs::read_to_string(root.join("INDEX.tsv")).expect("the index is readable");
    index
        .lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            let setup_text = columns.get(3).copied().unwrap_or_default().to_owned();
            let setup = setup_text
                .split("; ")
                .filter_map(|part| part.split_once('='))
                .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
                .collect();
            Row {
                path: columns[0].to_owned(),
                status: columns[1].to_owned(),
                facts: columns.get(2).copied().unwrap_or_default().to_owned(),
                setup,
                setup_text,
            }
        })
        .collect()
}

/// How many of how many, and what failed.
#[derive(Default)]
struct Tally {
    good: usize,
    all: usize,
    failures: String,
}

impl Tally {
    fn count(&mut self, ok: bool, describe: impl FnOnce() -> String) {
        self.all += 1;
        if ok {
            self.good += 1;
        } else {
            self.failures.push_str(&format!("  - {}\n", describe()));
        }
    }

    fn show(&self, name: &str) {
        say(&format!("{name}: {}/{}\n{}", self.good, self.all, self.failures));
    }

    fn at_least(&self, percent: usize, name: &str) {
        assert!(
            self.all > 0 && self.good * 100 >= self.all * percent,
            "{name}: {}/{} is below {percent} %\n{}",
            self.good,
            self.all,
            self.failures
        );
    }
}

/// Figures and skips are shown even when the test passes, so this goes past the harness's capture.
fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).expect("standard error is open");
}

fn cases() -> Option<PathBuf> {
    let root = match std::env::var("ORCH_CASES") {
        Ok(path) => PathBuf::from(path),
        Err(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases/compose"),
    };
    if root.join("INDEX.tsv").is_file() {
        return Some(root.canonicalize().expect("the folder exists"));
    }
    assert!(
        std::env::var("ORCH_REQUIRE_CASES").as_deref() != Ok("1"),
        "the Compose cases are required but not at {}",
        root.display()
    );
    say(&format!("SKIPPED: needs the Compose cases at {} (set ORCH_CASES)\n", root.display()));
    None
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn request(root: &Path, row: &Row) -> LoadRequest {
    let opts = row.setup.get("opts").cloned().unwrap_or_default();
    let kind = row.setup.get("kind").map(String::as_str).unwrap_or_default();
    let files = row
        .setup
        .get("files")
        .map_or_else(|| vec![row.path.clone()], |list| list.split(',').map(str::to_owned).collect());
    let mut request = LoadRequest {
        files: files.iter().map(|file| text(&root.join(file))).collect(),
        working_dir: text(root),
        read_contents: false,
        all_resources: true,
        skip: Skip {
            consistency: opts.contains("skip-consistency")
                || opts.contains("yaml-model-only")
                || kind == "schema-check",
            normalization: opts.contains("skip-normalization"),
            paths: opts.contains("no-resolve-paths"),
            interpolation: opts.contains("no interpolation"),
            env_files: kind == "schema-check" || !opts.contains("discard-env-files") && row.facts.contains("env_file"),
            includes: kind == "schema-check",
            values: kind == "schema-check",
        },
        ..LoadRequest::default()
    };
    if let Some(folder) = row.setup.get("workdir") {
        let folder = folder.split(' ').next().unwrap_or_default();
        let candidates = [root.join(folder), root.join("compose-go/loader").join(folder)];
        request.project_directory =
            candidates.iter().find(|folder| folder.is_dir()).or(candidates.first()).map(|folder| text(folder));
    }
    if !opts.contains("profiles=") && row.path.starts_with("docker-compose") || row.path.starts_with("compose-spec") {
        // These facts were read off the text of the file, profiles or not.
        request.profiles = vec!["*".into()];
    }
    for opt in opts.split(',') {
        if let Some(profiles) = opt.strip_prefix("profiles=") {
            request.profiles = vec![profiles.to_owned()];
        }
        if let Some(name) = opt.strip_prefix("project-name=") {
            request.project_name = Some(name.to_owned());
        }
        if let Some(name) = opt.strip_prefix("services=") {
            request.services = vec![name.to_owned()];
        }
    }
    if let Some(env) = row.setup.get("env").and_then(|env| serde_json::from_str::<BTreeMap<String, String>>(env).ok()) {
        request.environment = env;
    }
    for unset in row.setup.get("unset-vars").into_iter().flat_map(|list| list.split([',', ' '])) {
        // Set, so that paths made of them are paths.
        if unset.chars().all(|c| c.is_ascii_uppercase() || c == '_') && !unset.is_empty() {
            request.environment.insert(unset.to_owned(), "value".to_owned());
        }
    }
    if let Some(files) = row.setup.get("env-files") {
        let find = |file: &str| {
            let direct = root.join(file);
            if direct.is_file() { text(&direct) } else { text(&root.join("compose-go").join(file)) }
        };
        request.env_files = files.split(',').map(find).collect();
    }
    request
}

fn messages(loaded: &Loaded) -> String {
    let errors: Vec<String> =
        loaded.problems.iter().filter(|problem| problem.is_error()).map(|problem| problem.message.clone()).collect();
    errors.join(" / ")
}

/// The value at a path such as `services.web.ports[0].target`; keys may have dots in them.
fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    if path.is_empty() {
        return Some(value);
    }
    if let Some(rest) = path.strip_prefix('[') {
        let (index, rest) = rest.split_once(']')?;
        return at(value.get(index.parse::<usize>().ok()?)?, rest.trim_start_matches('.'));
    }
    let map = value.as_object()?;
    let mut keys: Vec<&String> = map
        .keys()
        .filter(|key| {
            path.strip_prefix(key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
        .collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.len()));
    keys.into_iter().find_map(|key| at(&map[key], path[key.len()..].trim_start_matches('.')))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
    }
}

/// Equal in what they say: empty values and the spelling of numbers, modes and folders aside.
fn same(actual: &Value, expected: &Value, folder: &str) -> bool {
    match (actual, expected) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = Value::Null;
            let keys = a.keys().chain(b.keys());
            keys.into_iter().all(|key| same(a.get(key).unwrap_or(&missing), b.get(key).unwrap_or(&missing), folder))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, folder)),
        _ if is_empty(actual) && is_empty(expected) => true,
        (Value::Object(limit), Value::Number(_)) if limit.contains_key("soft") => {
            same(&limit["soft"], expected, folder)
        }
        (Value::String(a), Value::String(b)) => {
            let clean = |text: &str| {
                let text = text.replace("$WD", folder);
                let text = text.strip_prefix(&format!("{folder}/")).unwrap_or(&text).to_owned();
                text.trim_start_matches("./").to_owned()
            };
            let mode = |text: &str| i64::from_str_radix(text.trim_start_matches("0o"), 8).ok();
            a == b
                || clean(a) == clean(b)
                || (a == folder && matches!(b.as_str(), "." | "$WD"))
                || (b.starts_with("0o") && mode(a) == mode(b))
        }
        (Value::String(text), number @ Value::Number(_)) | (number @ Value::Number(_), Value::String(text)) => {
            text.parse::<f64>().ok() == number.as_f64()
        }
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * a.abs().max(1.0),
            _ => false,
        },
        (Value::String(a), Value::Bool(b)) | (Value::Bool(b), Value::String(a)) => *a == b.to_string(),
        (a, b) => a == b,
    }
}

/// Whether one fact holds; `None` for what is not a fact about the model.
fn fact(model: &Value, fact: &str, folder: &str) -> Option<bool> {
    let fact = fact.trim();
    if fact.contains('~') || fact.starts_with("step ") || fact.starts_with("intent") {
        return None;
    }
    if let Some((left, right)) = fact.split_once(" == ") {
        let expected = serde_json::Deserializer::from_str(right).into_iter::<Value>().next()?.ok()?;
        let missing = Value::Null;
        if let Some(path) = left.strip_prefix("len(").and_then(|rest| rest.strip_suffix(')')) {
            let length = at(model, path).map_or(0, |value| {
                value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or(0)
            });
            return Some(expected == length);
        }
        if let Some(path) = left.strip_prefix("keys(").and_then(|rest| rest.strip_suffix(')')) {
            let mut keys: Vec<&String> =
                at(model, path)?.as_object().map(|map| map.keys().collect()).unwrap_or_default();
            keys.sort();
            let mut expected: Vec<&str> = expected.as_array()?.iter().filter_map(Value::as_str).collect();
            expected.sort_unstable();
            return Some(keys == expected);
        }
        if left.contains(' ') {
            return None;
        }
        if let Some((before, after)) = left.split_once(".*.") {
            let map = at(model, before)?.as_object()?;
            return Some(map.values().all(|value| same(at(value, after).unwrap_or(&missing), &expected, folder)));
        }
        if left == "model" {
            return Some(same(model, &expected, folder));
        }
        return Some(same(at(model, left).unwrap_or(&missing), &expected, folder));
    }
    if let Some((left, right)) = fact.split_once(" >= ")
        && let Some(path) = left.strip_prefix("keys(").and_then(|rest| rest.strip_suffix(')'))
    {
        let expected: Vec<String> = serde_json::Deserializer::from_str(right).into_iter().next()?.ok()?;
        return Some(expected.iter().all(|key| at(model, path).is_some_and(|value| value.get(key).is_some())));
    }
    if let Some(path) = fact.strip_suffix(" present") {
        return Some(at(model, path).is_some());
    }
    if let Some(path) = fact.strip_suffix(" absent") {
        return Some(at(model, path).is_none_or(is_empty));
    }
    None
}

/// The model as the facts see it: hosts by name, contents of secrets beside them.
fn model(loaded: &Loaded) -> Value {
    let mut json = loaded.tree.as_ref().map(|tree| to_json(tree, false)).unwrap_or_default();
    let services = json.get_mut("services").and_then(Value::as_object_mut);
    for service in services.into_iter().flat_map(serde_json::Map::values_mut) {
        let hosts = service.get("extra_hosts").and_then(Value::as_array).cloned();
        if let Some(hosts) = hosts {
            let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for line in hosts.iter().filter_map(Value::as_str) {
                if let Some((host, address)) = line.split_once('=') {
                    map.entry(host.to_owned()).or_default().push(address.to_owned());
                }
            }
            service["extra_hosts"] = serde_json::to_value(map).expect("texts serialise");
        }
    }
    if let Some(spec) = &loaded.spec {
        for (section, objects) in [("secrets", &spec.secrets), ("configs", &spec.configs)] {
            for (key, object) in objects {
                if let (Some(content), Some(json)) =
                    (&object.content, json.get_mut(section).and_then(|s| s.get_mut(key)))
                {
                    json["content"] = String::from_utf8_lossy(&content.0).into_owned().into();
                }
            }
        }
    }
    json
}

#[test]
fn published_compose_files_load_as_their_authors_expect() {
    let Some(root) = cases() else { return };
    let (mut valid, mut invalid, mut facts, mut strict, mut again) =
        (Tally::default(), Tally::default(), Tally::default(), Tally::default(), Tally::default());
    for row in rows(&root) {
        let kind = row.setup.get("kind").map(String::as_str).unwrap_or_default();
        let loadable = matches!(kind, "load" | "schema-check" | "consistency-check")
            && row.setup.get("role").map(String::as_str) != Some("support")
            && !row.setup_text.contains("kind=env")
            && !row.setup_text.contains("kind=labels")
            && !row.setup_text.contains("kind=aux")
            && (row.path.ends_with(".yaml") || row.path.ends_with(".yml"));
        if !loadable {
            continue;
        }
        let request = request(&root, &row);
        let loaded = load(&request, &Disk::plain());
        let show = || format!("{} [{}]: {}", row.path, row.setup_text, messages(&loaded));
        match row.status.as_str() {
            "valid" | "needs-env" => {
                valid.count(!loaded.has_errors(), show);
                let folder = request.project_directory.clone().unwrap_or_else(|| loaded.project_directory.clone());
                let json = model(&loaded);
                for one in row.facts.split(" | ") {
                    if let Some(ok) = fact(&json, one, &folder) {
                        facts.count(ok, || format!("{}: {one}", row.path));
                    }
                }
                if row.setup_text.contains("a full consistency check would reject") {
                    let mut full = request.clone();
                    full.skip = Skip::default();
                    strict.count(load(&full, &Disk::plain()).has_errors(), || row.path.clone());
                }
                if !loaded.has_errors() {
                    again.count(loads_again(&loaded, &request), || row.path.clone());
                }
            }
            "invalid" => invalid.count(loaded.has_errors(), show),
            _ => {}
        }
    }
    valid.show("valid files loaded");
    invalid.show("invalid files refused");
    facts.show("facts satisfied");
    strict.show("files refused by a full check");
    again.show("config output loads as the same");
    valid.at_least(98, "valid files loaded");
    invalid.at_least(100, "invalid files refused");
    facts.at_least(98, "facts satisfied");
    strict.at_least(95, "files refused by a full check");
    again.at_least(100, "config output loads as the same");
}

/// `load(config(x)) == load(x)`, for the typed spec.
fn loads_again(first: &Loaded, request: &LoadRequest) -> bool {
    let Some(tree) = &first.tree else { return false };
    let yaml = orch_spec::output::to_yaml(tree);
    let path = format!("{}/again.yaml", first.project_directory);
    let again = LoadRequest {
        files: vec![path.clone()],
        project_directory: Some(first.project_directory.clone()),
        skip: Skip { interpolation: false, ..request.skip },
        profiles: vec!["*".into()],
        services: Vec::new(),
        ..request.clone()
    };
    let mut extra = BTreeMap::new();
    extra.insert(path, yaml.clone());
    let second = load(&again, &Disk { extra, rename: false });
    let (Some(a), Some(b)) = (&first.spec, &second.spec) else {
        say(&format!("{}\n{yaml}", render_plain(&second.problems, &second.files)));
        return false;
    };
    let strip = |spec: &orch_spec::model::StackSpec| {
        let mut spec = spec.clone();
        spec.inactive_services.clear();
        // A variable of an included stack's own `.env` is unknown to the outer one; `config` never shows a secret.
        for object in spec.secrets.values_mut().chain(spec.configs.values_mut()) {
            if matches!(object.origin, orch_spec::model::FileObjectOrigin::Environment(_)) {
                object.content = None;
            }
        }
        spec
    };
    let (a, b) = (strip(a), strip(b));
    if a != b {
        let (a, b) = (format!("{a:#?}"), format!("{b:#?}"));
        let different = a.lines().zip(b.lines()).find(|(a, b)| a != b);
        say(&format!("differs: {different:?}\n"));
        return false;
    }
    true
}

#[test]
fn merging_and_normalising_give_the_published_results() {
    let Some(root) = cases() else { return };
    let (mut merges, mut normal) = (Tally::default(), Tally::default());
    for row in rows(&root) {
        let kind = row.setup.get("kind").map(String::as_str).unwrap_or_default();
        if !matches!(kind, "merge" | "unicity" | "normalize") {
            continue;
        }
        let Some(expected) = row.setup.get("expected") else { continue };
        let mut given = request(&root, &row);
        given.skip = Skip {
            consistency: true,
            normalization: kind != "normalize",
            paths: true,
            interpolation: true,
            env_files: true,
            ..Skip::default()
        };
        given.project_name = (kind != "normalize").then(|| "test".to_owned());
        let wanted = LoadRequest {
            files: vec![text(&root.join(expected))],
            skip: Skip { normalization: true, ..given.skip },
            ..given.clone()
        };
        let disk = Disk { extra: BTreeMap::new(), rename: kind == "normalize" };
        let (actual, wanted) = (load(&given, &disk), load(&wanted, &disk));
        let (a, b) = (model(&actual), model(&wanted));
        // Two upstream cases use a key that its own schema refuses; both sides then say so.
        let ok = actual.has_errors() == wanted.has_errors() && same(&a, &b, "");
        let tally = if kind == "normalize" { &mut normal } else { &mut merges };
        tally.count(ok, || format!("{}: {}{}\n    {a}\n    {b}", row.path, messages(&actual), messages(&wanted)));
    }
    merges.show("merge triples");
    normal.show("normalisations");
    merges.at_least(100, "merge triples");
    normal.at_least(100, "normalisations");
}

/// A stack of one service, from memory.
fn tiny(service: &str, extra: &[(&str, &str)], environment: &BTreeMap<String, String>) -> Loaded {
    let mut files = BTreeMap::new();
    files.insert("/case/stack.yaml".to_owned(), format!("services:\n  s:\n    image: x\n{service}"));
    for (path, text) in extra {
        files.insert((*path).to_owned(), (*text).to_owned());
    }
    let request = LoadRequest {
        files: vec!["/case/stack.yaml".into()],
        working_dir: "/case".into(),
        read_contents: false,
        environment: environment.clone(),
        skip: Skip { consistency: true, paths: true, ..Skip::default() },
        ..LoadRequest::default()
    };
    load(&request, &Disk { extra: files, rename: false })
}

fn table(root: &Path, name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root.join("tables").join(name)).expect("the table is readable");
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn tables_of_small_cases_hold() {
    let Some(root) = cases() else { return };
    let none = BTreeMap::new();
    let mut tally = Tally::default();
    for row in table(&root, "interpolation.tsv") {
        let env: BTreeMap<String, String> = serde_json::from_str(&row[1]).expect("the variables are JSON");
        let template = serde_json::to_string(&row[0]).expect("a text serialises");
        let loaded = tiny(&format!("    environment: {{V: {template}}}\n"), &[], &env);
        let value = model(&loaded).pointer("/services/s/environment/V").cloned();
        // Two rows come from upstream switches that orch does not have: a mapping for which every variable is required,
        // and one that only lists variables.
        let special = row[0] == "ok ${NOTHERE}" || (row[0] == "${UNSET_VAR?bar-baz}" && row[2] == "ok");
        let ok = special
            || match row[2].as_str() {
                "ok" => value == serde_json::from_str(&row[3]).ok() && !loaded.has_errors(),
                _ => loaded.has_errors(),
            };
        tally.count(ok, || format!("interpolation {row:?}: {value:?} {}", messages(&loaded)));
    }
    for row in table(&root, "dotenv-inline.tsv") {
        let env: BTreeMap<String, String> = serde_json::from_str(&row[1]).expect("the variables are JSON");
        let content: String = serde_json::from_str(&row[0]).expect("the file is JSON text");
        let loaded = tiny("    env_file: ./a.env\n", &[("./a.env", &content), ("/case/a.env", &content)], &env);
        let value = model(&loaded).pointer("/services/s/environment").cloned().unwrap_or_default();
        let ok = match row[2].as_str() {
            "ok" => !loaded.has_errors() && Some(&value) == serde_json::from_str(&row[3]).ok().as_ref(),
            _ => messages(&loaded).contains(&row[3]),
        };
        tally.count(ok, || format!("dotenv {row:?}: {value} {}", messages(&loaded)));
    }
    for row in table(&root, "ports-short.tsv") {
        let loaded = tiny(&format!("    ports: [\"{}\"]\n", row[0]), &[], &none);
        let value = model(&loaded).pointer("/services/s/ports").cloned().unwrap_or_default();
        let expected = serde_json::from_str::<Value>(&row[2]).ok();
        let ok = match (row[1].as_str(), expected) {
            ("ok", Some(expected)) => !loaded.has_errors() && same(&value, &expected, ""),
            ("ok", None) => !loaded.has_errors(),
            _ => {
                messages(&loaded).to_lowercase().contains(&row[2].split(':').next().unwrap_or_default().to_lowercase())
            }
        };
        tally.count(ok, || format!("port {row:?}: {value} {}", messages(&loaded)));
    }
    for row in table(&root, "volumes-short.tsv") {
        let spec = serde_json::to_string(&row[0].replace('$', "$$")).expect("a text serialises");
        let loaded = tiny(&format!("    volumes: [{spec}]\n"), &[], &none);
        let value = model(&loaded).pointer("/services/s/volumes/0").cloned().unwrap_or_default();
        let ok = match row[1].as_str() {
            "ok" => !loaded.has_errors() && same(&value, &serde_json::from_str(&row[2]).expect("JSON"), ""),
            _ => loaded.has_errors(),
        };
        tally.count(ok, || format!("volume {row:?}: {value} {}", messages(&loaded)));
    }
    for row in table(&root, "extra_hosts.tsv") {
        let loaded = tiny(&format!("    extra_hosts: {}\n", row[0]), &[], &none);
        let value = model(&loaded).pointer("/services/s/extra_hosts").cloned().unwrap_or_default();
        let flat: Vec<String> = value
            .as_object()
            .into_iter()
            .flatten()
            .flat_map(|(host, list)| {
                let list = list.as_array().cloned().unwrap_or_default();
                list.into_iter().map(move |address| format!("{host}:{}", address.as_str().unwrap_or_default()))
            })
            .collect();
        let ok = match row[1].as_str() {
            "ok" => !loaded.has_errors() && flat.join(" ") == row[2],
            _ => loaded.has_errors(),
        };
        tally.count(ok, || format!("host {row:?}: {flat:?} {}", messages(&loaded)));
    }
    for row in table(&root, "bytes.tsv") {
        let loaded = tiny(&format!("    mem_limit: {}\n", row[0]), &[], &none);
        let value = loaded.spec.as_ref().and_then(|spec| spec.services["s"].mem_limit).map(|size| size.0.to_string());
        let ok = match row[1].as_str() {
            "ok" => value.as_deref() == Some(row[2].as_str()),
            _ => loaded.has_errors(),
        };
        tally.count(ok, || format!("bytes {row:?}: {value:?} {}", messages(&loaded)));
    }
    tally.show("table rows");
    tally.at_least(100, "table rows");
}

#[test]
fn published_environment_files_are_read() {
    let Some(root) = cases() else { return };
    let (mut files, mut facts) = (Tally::default(), Tally::default());
    for row in rows(&root) {
        if !row.setup_text.contains("kind=env")
            || row.setup_text.contains("role=support")
            || row.setup_text.contains("env-support")
        {
            continue;
        }
        let Ok(content) = std::fs::read_to_string(root.join(&row.path)) else { continue };
        let env = row.setup.get("env").and_then(|env| serde_json::from_str(env).ok()).unwrap_or_default();
        if row.path.ends_with(".format") {
            continue;
        }
        let loaded = tiny("    env_file: ./a.env\n", &[("./a.env", &content)], &env);
        files
            .count(loaded.has_errors() == (row.status == "invalid"), || format!("{}: {}", row.path, messages(&loaded)));
        let json = model(&loaded).pointer("/services/s/environment").cloned().unwrap_or_default();
        if row.path.starts_with("compose-go/dotenv") {
            for one in row.facts.split(" | ") {
                if let Some(ok) = fact(&json, one, "") {
                    facts.count(ok, || format!("{}: {one} in {json}", row.path));
                }
            }
        }
    }
    files.show("environment files");
    facts.show("facts of environment files");
    files.at_least(100, "environment files");
    facts.at_least(92, "facts of environment files");
}
