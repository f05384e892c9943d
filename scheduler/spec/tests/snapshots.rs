//! What a person reads for a broken stack file, and what a good one comes to.
//!
//! Each file of `testdata/broken` is a stack with mistakes; beside it lies what orch says about it. Each file of
//! `testdata/good` is a stack; beside it lies what `config` prints. A line `#### NAME` begins a further file, a line
//! `#### env NAME=VALUE` sets a variable. `UPDATE_EXPECT=1` rewrites the expectations: read the difference afterwards.

use orch_spec::load::{LoadRequest, Loaded, ReadError, Source, load};
use orch_spec::model::Protocol;
use orch_spec::output::to_yaml;
use orch_spec::render::render_plain;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

struct Memory(BTreeMap<String, Vec<u8>>);

impl Source for Memory {
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        let bytes = self.0.get(path).ok_or(ReadError::Missing)?;
        if bytes.len() > limit { Err(ReadError::TooLarge(limit)) } else { Ok(bytes.clone()) }
    }

    fn is_file(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

fn run(script: &str) -> (Loaded, LoadRequest, Memory) {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut request = LoadRequest { working_dir: "/project".into(), all_resources: true, ..LoadRequest::default() };
    let mut name = "stack.yaml".to_owned();
    for line in script.split_inclusive('\n') {
        match line.strip_prefix("#### ").map(str::trim) {
            Some(setting) if setting.starts_with("env ") => {
                let (key, value) = setting[4..].split_once('=').expect("a variable has a value");
                request.environment.insert(key.to_owned(), value.to_owned());
            }
            Some(setting) if setting.starts_with("-f ") => {
                request.files = setting[3..].split(' ').map(str::to_owned).collect();
            }
            Some(file) => name = file.to_owned(),
            None => files.entry(format!("/project/{name}")).or_default().push_str(line),
        }
    }
    let memory = Memory(files.into_iter().map(|(path, text)| (path, text.into_bytes())).collect());
    (load(&request, &memory), request, memory)
}

fn scripts(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder);
    let mut list: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder is part of the crate")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    list.sort();
    list
}

fn compare(script: &Path, actual: &str, differences: &mut Vec<String>) {
    let path = script.with_extension("txt");
    if std::env::var("UPDATE_EXPECT").is_ok() {
        std::fs::write(&path, actual).expect("the expectation can be written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if expected != actual {
        differences.push(format!("{}:\n--- expected\n{expected}\n--- actual\n{actual}", script.display()));
    }
}

#[test]
fn every_mistake_gets_a_message_that_says_what_to_change_and_where() {
    let (mut differences, scripts) = (Vec::new(), scripts("broken"));
    assert!(scripts.len() >= 60, "only {} broken stack files", scripts.len());
    for script in scripts {
        let text = std::fs::read_to_string(&script).expect("readable");
        let (loaded, ..) = run(&text);
        if !script.file_name().is_some_and(|name| name.to_string_lossy().starts_with("warning")) {
            assert!(loaded.has_errors() && loaded.spec.is_none(), "{} is not refused", script.display());
        }
        compare(&script, &render_plain(&loaded.problems, &loaded.files), &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn good_stacks_come_to_their_canonical_form_and_load_from_it_again() {
    let mut differences = Vec::new();
    for script in scripts("good") {
        let text = std::fs::read_to_string(&script).expect("readable");
        let (loaded, request, mut memory) = run(&text);
        assert!(loaded.spec.is_some(), "{}: {}", script.display(), render_plain(&loaded.problems, &loaded.files));
        let yaml = to_yaml(loaded.tree.as_ref().expect("a good stack has a tree"));
        memory.0.insert("/project/again.yaml".into(), yaml.clone().into_bytes());
        let again = load(&LoadRequest { files: vec!["/project/again.yaml".into()], ..request }, &memory);
        let active = |spec: Option<orch_spec::model::StackSpec>| {
            // `config` prints the services that are on, so nothing is off when it is read again.
            spec.map(|spec| orch_spec::model::StackSpec { inactive_services: Vec::new(), ..spec })
        };
        assert_eq!(
            active(loaded.spec),
            active(again.spec),
            "{}: config output loads as something else",
            script.display()
        );
        let warnings = render_plain(&loaded.problems, &loaded.files);
        compare(&script, &format!("{yaml}{warnings}"), &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_spec_survives_json_and_postcard_and_its_debug_text_shows_no_secret() {
    for script in scripts("good") {
        let (loaded, ..) = run(&std::fs::read_to_string(&script).expect("readable"));
        let spec = loaded.spec.expect("a good stack has a spec");
        let json = serde_json::to_string(&spec).expect("serialises");
        assert_eq!(spec, serde_json::from_str(&json).expect("deserialises"));
        let bytes = postcard::to_stdvec(&spec).expect("serialises");
        assert_eq!(spec, postcard::from_bytes(&bytes).expect("deserialises"));
        assert!(!format!("{spec:?}").contains("hunter2"), "{}: a secret is shown", script.display());
    }
}

#[test]
fn an_exposed_port_has_the_protocol_that_was_checked() {
    let (loaded, ..) = run("services:\n  names:\n    image: x:1\n    expose: [53/UDP, 80]\n");
    let spec = loaded.spec.expect("it is a good stack");
    let exposed: Vec<_> = spec.services["names"].expose.iter().map(|ports| (ports.start, ports.protocol)).collect();
    assert_eq!(exposed, [(53, Protocol::Udp), (80, Protocol::Tcp)]);
}

#[test]
fn the_digest_follows_what_containers_are_made_of_and_nothing_else() {
    let base = "services:\n  a:\n    image: x:1\n    secrets: [s]\nsecrets: {s: {file: s.txt}}\n";
    let secret = "#### s.txt\none\n";
    let digest = |script: String| {
        let (loaded, ..) = run(&script);
        let spec = loaded.spec.unwrap_or_else(|| panic!("{}", render_plain(&loaded.problems, &loaded.files)));
        spec.service_digest("a").expect("the service exists")
    };
    let original = digest(format!("{base}{secret}"));
    let with = |line: &str| {
        digest(format!("{}{secret}", base.replace("    secrets: [s]\n", &format!("    secrets: [s]\n    {line}\n"))))
    };
    for same in [
        "scale: 3",
        "pull_policy: always",
        "deploy: {replicas: 2}",
        "build: .",
        "deploy: {update_config: {parallelism: 2}}",
    ] {
        assert_eq!(original, with(same), "{same} changes no container");
    }
    for other in ["environment: {A: b}", "command: run", "privileged: true", "labels: {a: b}", "command: []"] {
        assert_ne!(original, with(other), "{other} changes the container");
    }
    assert_ne!(original, digest(format!("{base}#### s.txt\ntwo\n")), "the content of a secret changes the container");
    assert_ne!(with("command: []"), original, "an empty command is not the image's");
}
