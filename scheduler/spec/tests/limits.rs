//! Files that want to hurt: each gets an answer, in bounded memory and without a crash.

use orch_spec::code;
use orch_spec::load::{LoadRequest, Loaded, ReadError, Source, load};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One file that need not exist in memory, and what was asked of it.
struct Huge {
    size: usize,
    largest_limit: Cell<usize>,
}

impl Source for Huge {
    fn read(&self, _: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        self.largest_limit.set(self.largest_limit.get().max(limit));
        if self.size > limit { Err(ReadError::TooLarge(limit)) } else { Ok(vec![b'a'; self.size]) }
    }

    fn is_file(&self, path: &str) -> bool {
        path == "/p/stack.yaml"
    }
}

struct One(Vec<u8>);

impl Source for One {
    fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, ReadError> {
        match path {
            "/p/stack.yaml" if self.0.len() <= limit => Ok(self.0.clone()),
            "/p/stack.yaml" => Err(ReadError::TooLarge(limit)),
            _ => Err(ReadError::Missing),
        }
    }

    fn is_file(&self, path: &str) -> bool {
        path == "/p/stack.yaml"
    }
}

fn read(text: impl Into<Vec<u8>>) -> Loaded {
    read_with(text, BTreeMap::new())
}

fn read_with(text: impl Into<Vec<u8>>, environment: BTreeMap<String, String>) -> Loaded {
    let request = LoadRequest { working_dir: "/p".into(), environment, ..LoadRequest::default() };
    load(&request, &One(text.into()))
}

fn codes(loaded: &Loaded) -> Vec<code::Code> {
    loaded.problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn a_file_of_a_hundred_megabytes_is_refused_before_it_is_read() {
    let source = Huge { size: 100 << 20, largest_limit: Cell::new(0) };
    let loaded = load(&LoadRequest { working_dir: "/p".into(), ..LoadRequest::default() }, &source);
    assert_eq!(codes(&loaded), [code::TOO_LARGE]);
    assert!(source.largest_limit.get() <= 8 << 20);
}

#[test]
fn nesting_of_twenty_thousand_levels_is_refused() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        let text = format!("x-a: {}{}\n", open.repeat(20_000), close.repeat(20_000));
        assert_eq!(codes(&read(text)), [code::YAML_LIMIT], "{open}");
    }
    let mut block = String::from("x-a:\n");
    for depth in 1..20_000 {
        let _ = writeln!(block, "{:depth$}a:", "");
        if block.len() > 7 << 20 {
            break;
        }
    }
    assert_eq!(codes(&read(block)), [code::YAML_LIMIT]);
    assert_eq!(codes(&read(format!("x-a: {}x\n", "- ".repeat(20_000)))).first(), Some(&code::YAML_SYNTAX));
    assert_eq!(codes(&read(format!("x-a:\n  {}x\n", "- ".repeat(20_000)))), [code::YAML_LIMIT]);
}

#[test]
fn anchors_that_nest_into_each_other_are_refused_by_depth() {
    let mut text = String::from("x-0: &a0 [x]\n");
    for level in 1..200 {
        let _ = writeln!(text, "x-{level}: &a{level} [*a{}]", level - 1);
    }
    assert_eq!(codes(&read(text)), [code::YAML_LIMIT]);
}

#[test]
fn aliases_cannot_multiply_values_or_text() {
    let mut bomb = String::from("x-0: &a0 {k: v}\n");
    for level in 1..12 {
        let list = vec![format!("*a{}", level - 1); 9].join(", ");
        let _ = writeln!(bomb, "x-{level}: &a{level} [{list}]");
    }
    assert_eq!(codes(&read(bomb)), [code::YAML_LIMIT]);
    let text = format!("x-a: &a {}\nx-b: [{}]\n", "y".repeat(1 << 20), vec!["*a"; 200].join(", "));
    assert_eq!(codes(&read(text)), [code::YAML_LIMIT]);
    let merges = format!("x-a: &a {{{}}}\nx-b:\n{}", pairs(1000), "  - {<<: *a}\n".repeat(2000));
    assert_eq!(codes(&read(merges)), [code::YAML_LIMIT]);
}

fn pairs(count: usize) -> String {
    (0..count).map(|index| format!("k{index}: v")).collect::<Vec<_>>().join(", ")
}

#[test]
fn more_than_a_hundred_thousand_values_are_refused() {
    assert_eq!(codes(&read(format!("x-a:\n{}", "  - a\n".repeat(100_001)))), [code::YAML_LIMIT]);
}

#[test]
fn variables_cannot_multiply_text() {
    let environment = BTreeMap::from([("BIG".to_owned(), "z".repeat(1 << 20))]);
    let text = format!("x-a: [{}]\nservices: {{a: {{image: x}}}}\n", vec!["$BIG"; 1000].join(", "));
    assert!(codes(&read_with(text, environment)).contains(&code::YAML_LIMIT));
    let nested = format!("x-a: \"{}{}\"\nservices: {{a: {{image: x}}}}\n", "${A:-".repeat(10_000), "}".repeat(10_000));
    assert!(codes(&read(nested)).contains(&code::INTERPOLATION));
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let nul = read("services:\n  a:\n    image: \"x\0y\"\n");
    assert_eq!(codes(&nul), [code::NOT_TEXT]);
    assert_eq!(nul.files.position(nul.problems[0].labels[0].span).line, 3);
    assert_eq!(codes(&read(vec![0xff, 0xfe, b'a'])), [code::NOT_TEXT]);
}

#[test]
fn byte_order_marks_and_windows_line_ends_change_nothing() {
    let plain = read("services:\n  a:\n    image: x\n    command: |\n      one\n      two\n");
    let windows = read("\u{feff}services:\r\n  a:\r\n    image: x\r\n    command: |\r\n      one\r\n      two\r\n");
    assert!(plain.spec.is_some());
    assert_eq!(plain.spec, windows.spec);
}

#[test]
fn any_text_gets_an_answer() {
    let pieces = [
        "services:",
        "\n",
        "  ",
        "a:",
        " ",
        "- ",
        "&x ",
        "*x",
        "<<: ",
        "${A:-",
        "}",
        "\"",
        "'",
        "[",
        "]",
        "{",
        "!reset ",
        "|",
        "\t",
        "image: x",
        "ports: ",
        "80",
        "depends_on: ",
        "é",
        "\u{0}",
        "---\n",
        "extends: ",
        "include: ",
    ];
    // A small generator of our own: the seed is the whole state, so a failure names its input.
    for seed in 1..4000u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut text = String::new();
        for _ in 0..40 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push_str(pieces[usize::try_from(state % pieces.len() as u64).expect("small")]);
        }
        let loaded = read(text.clone());
        assert!(loaded.spec.is_some() || loaded.has_errors(), "neither spec nor error for {text:?}");
        let shown = orch_spec::render::render_plain(&loaded.problems, &loaded.files);
        assert!(loaded.problems.is_empty() || !shown.is_empty());
    }
}

#[test]
fn five_hundred_services_with_variables_and_dependencies_load() {
    let mut text = String::from("x-common: &common {restart: always, logging: {driver: local}}\nservices:\n");
    for index in 0..500 {
        let _ = writeln!(
            text,
            "  s{index}:\n    <<: *common\n    image: \"app:${{TAG:-1}}\"\n    environment: [A={index}, \"B=${{B:-x}}\"]\n    ports: [\"{}:80\"]",
            10_000 + index
        );
        if index > 0 {
            let _ = writeln!(text, "    depends_on: [s{}]", index - 1);
        }
    }
    let loaded = read(text);
    assert_eq!(loaded.spec.expect("it is a good stack").services.len(), 500);
}

/// Several files in one folder.
struct Many(BTreeMap<String, String>);

impl Source for Many {
    fn read(&self, path: &str, _: usize) -> Result<Vec<u8>, ReadError> {
        self.0.get(path).map(|text| text.clone().into_bytes()).ok_or(ReadError::Missing)
    }

    fn is_file(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

fn read_many(files: impl IntoIterator<Item = (String, String)>) -> Loaded {
    let files = files.into_iter().map(|(name, text)| (format!("/p/{name}"), text)).collect();
    load(&LoadRequest { working_dir: "/p".into(), ..LoadRequest::default() }, &Many(files))
}

#[test]
fn includes_cannot_multiply() {
    let file = |level: usize| {
        let name = if level == 0 { "stack.yaml".to_owned() } else { format!("{level}.yaml") };
        let next = format!("{}.yaml", level + 1);
        (name, format!("include: [{next}, ./{next}, .//{next}]\nservices: {{s{level}: {{image: x}}}}\n"))
    };
    assert!(codes(&read_many((0..30).map(file))).contains(&code::YAML_LIMIT));
    assert!(codes(&read_many((0..2000).map(file))).contains(&code::YAML_LIMIT));
}

#[test]
fn extends_cannot_multiply_or_recurse_without_end() {
    let mut chain = String::from("services:\n  s0: {image: x}\n");
    for level in 1..20_000 {
        let _ = writeln!(chain, "  s{level}: {{extends: s{}}}", level - 1);
    }
    let backwards: String = chain
        .lines()
        .take(2)
        .chain(chain.lines().skip(2).collect::<Vec<_>>().into_iter().rev())
        .fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        });
    assert!(codes(&read(backwards)).contains(&code::YAML_LIMIT));
    let mut wide = format!("services:\n  base: {{image: x, environment: {{{}}}}}\n", pairs(20_000));
    for index in 0..5_000 {
        let _ = writeln!(wide, "  s{index}: {{extends: base}}");
    }
    assert!(codes(&read(wide)).contains(&code::YAML_LIMIT));
}

#[test]
fn environment_files_cannot_double_their_lines_without_end() {
    let mut doubling = String::from("A0=xxxxxxxxxxxxxxxx\n");
    for line in 1..200 {
        let _ = writeln!(doubling, "A{line}=$A{0}$A{0}", line - 1);
    }
    let stack = ("stack.yaml".to_owned(), "services: {a: {image: x}}\n".to_owned());
    assert!(codes(&read_many([stack, (".env".to_owned(), doubling)])).contains(&code::ENV_FILE_SYNTAX));
}
