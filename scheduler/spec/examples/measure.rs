//! Times `load` and `to_yaml` of a generated stack: `cargo run --release -p orch-spec --example measure -- 50`.

use orch_spec::load::{LoadRequest, ReadError, Source, load};
use std::fmt::Write as _;
use std::time::Instant;

struct One(Vec<u8>);

impl Source for One {
    fn read(&self, path: &str, _: usize) -> Result<Vec<u8>, ReadError> {
        if path == "/p/stack.yaml" { Ok(self.0.clone()) } else { Err(ReadError::Missing) }
    }

    fn is_file(&self, path: &str) -> bool {
        path == "/p/stack.yaml"
    }
}

fn main() {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50);
    let mut text = String::from("services:\n");
    for index in 0..count {
        let _ = write!(
            text,
            "  s{index}:\n    image: \"registry.example/app{index}:${{TAG:-1}}\"\n    environment:\n      A: {index}\n      \
             B: \"${{B:-x}}\"\n      C: text\n    ports: [\"{}:80\"]\n    volumes: [\"data:/data\", \"./conf:/conf:ro\"]\n    \
             healthcheck: {{test: [CMD, check], interval: 10s}}\n    deploy: {{replicas: 2, resources: {{limits: {{memory: \
             64m}}}}}}\n    labels: {{a: b, c: d}}\n",
            10_000 + index
        );
        if index > 0 {
            let _ = writeln!(text, "    depends_on: {{s{}: {{condition: service_healthy}}}}", index - 1);
        }
    }
    text.push_str("volumes: {data: }\n");
    let source = One(text.into_bytes());
    let request = LoadRequest { working_dir: "/p".into(), ..LoadRequest::default() };
    let mut times = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let loaded = load(&request, &source);
        let yaml = orch_spec::output::to_yaml(loaded.tree.as_ref().expect("the stack is good"));
        times.push(start.elapsed());
        assert!(loaded.spec.is_some() && !yaml.is_empty());
    }
    times.sort();
    #[expect(clippy::print_stdout, reason = "this is what it is for")]
    {
        println!("{count} services: median {:?}, fastest {:?}", times[10], times[0]);
    }
}
