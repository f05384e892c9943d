//! The rules of the house, applied to this repository. What they are and that they can fail: `orch_tests::tidy`.

use orch_tests::tidy::{File, files, manifest, promise, repository, source};

/// Fails with all findings, one a line.
#[track_caller]
fn check(rule: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{rule}; {} findings:\n  {}\n", findings.len(), findings.join("\n  "));
}

fn tree() -> Vec<File> {
    let tree = files(&repository()).expect("the repository can be read");
    assert!(tree.iter().any(|f| f.path == "cli/src/main.rs"), "the repository was not read");
    tree
}

#[test]
fn dependencies_point_down() {
    check(
        "arrows of the house point down only",
        manifest::forbidden_arrows(&manifest::packages(&repository()).expect("cargo reads the manifests")),
    );
}

#[test]
fn the_specification_and_the_core_are_pure() {
    check(
        "pure crates reach no executor, system call or socket",
        manifest::impurities(&manifest::graph(&repository()).expect("cargo resolves the graph")),
    );
}

#[test]
fn unsafe_code_is_in_one_place() {
    check("unsafe code lives in the engine's sys modules", source::unsafe_code(&tree()));
}

#[test]
fn file_names_are_nouns_for_what_they_hold() {
    check("files are the noun they define", source::empty_names(&tree()));
}

#[test]
fn files_stay_short() {
    check("one file, one thing", source::long_files(&tree(), source::LONG));
}

#[test]
fn no_test_is_turned_off() {
    check("no test is turned off", source::ignored_tests(&tree()));
}

#[test]
fn work_left_for_later_has_an_issue() {
    check("work left for later has an issue", source::unknown_work(&tree()));
}

#[test]
fn the_core_is_deterministic() {
    check("pure code depends on its input alone", source::indeterminism(&tree()));
}

#[test]
fn every_promise_names_its_proof() {
    check("each promise names a test or benchmark that exists", promise::unproven(&tree()));
}

#[test]
fn pages_name_no_machine_but_the_readers() {
    check("pages hold for every reader's machine", promise::foreign_paths(&tree()));
}
