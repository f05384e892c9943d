//! `include`: other stacks copied underneath this one.

use super::{Loader, MAX_INCLUDE_DEPTH, MAX_INCLUDES, Scope};
use crate::check::{Check, Step};
use crate::code;
use crate::merge::{apply_marks, merge};
use crate::node::{Map, Node, Value};
use crate::paths::{is_remote, join, parent};
use crate::problem::Problem;
use crate::schema::{INCLUDE, Merge, STACK};

/// The sections that an include brings along; its name and its `x-*` keys stay behind.
const SECTIONS: [&str; 6] = ["services", "networks", "volumes", "secrets", "configs", "models"];

impl Loader<'_> {
    /// Takes `include` out of a document and puts what it names underneath. The first include lies on top of the others.
    pub(super) fn apply_includes(&mut self, document: &mut Node, scope: &Scope) {
        let Some(entry) = document.as_map_mut().and_then(|map| map.shift_remove("include")) else { return };
        let mut list = entry.node;
        {
            let mut check = Check::new(&mut self.report, &self.files);
            check.path.push(Step::Key("include".into()));
            check.node(&mut list, &INCLUDE);
        }
        if self.request.skip.includes {
            return;
        }
        let mut below: Option<Node> = None;
        for item in list.items() {
            let Some(imported) = self.include(item, scope) else { continue };
            below = Some(match below {
                None => imported,
                Some(top) => self.on_top(imported, top),
            });
        }
        if let Some(mut below) = below {
            apply_marks(&mut below, document);
            let local = std::mem::replace(document, Node::invalid(entry.key));
            *document = self.on_top(below, local);
        }
    }

    /// `top` merged onto `below`; what is the same in both (one file reached twice) is not merged with itself.
    fn on_top(&mut self, below: Node, mut top: Node) -> Node {
        for section in SECTIONS {
            let (Some(under), Some(Value::Map(over))) =
                (below.get(section), top.get_mut(section).map(|node| &mut node.value))
            else {
                continue;
            };
            over.retain(|name, entry| !under.get(name).is_some_and(|known| known.same(&entry.node)));
        }
        let mut check = Check::new(&mut self.report, &self.files);
        check.partial = true;
        merge(&mut check, below, top, &STACK, Merge::ByKind)
    }

    fn include(&mut self, item: &Node, scope: &Scope) -> Option<Node> {
        let texts = |key: &str| -> Vec<(String, crate::span::Span)> {
            let items = item.get(key).map(Node::items).unwrap_or_default();
            items.iter().filter_map(|node| Some((node.as_text()?.to_owned(), node.span))).collect()
        };
        let paths = texts("path");
        let (first, first_span) = paths.first()?;
        if let Some((remote, span)) = paths.iter().find(|(path, _)| is_remote(path)) {
            self.report
                .add(Problem::error(code::REMOTE, format!("cannot include {remote}")).at(*span, "not a local file"));
            return None;
        }
        let main = join(&scope.folder, first);
        let folder = match item.get("project_directory").and_then(Node::as_text) {
            Some(folder) if !folder.is_empty() => join(&scope.folder, folder),
            _ => parent(&main).to_owned(),
        };
        if scope.chain.contains(&main) {
            let mut chain = scope.chain.clone();
            chain.push(main);
            self.report.add(
                Problem::error(code::INCLUDE_CYCLE, format!("include cycle detected: {}", chain.join(" -> ")))
                    .at(*first_span, "closes the circle"),
            );
            return None;
        }

        if scope.chain.len() > MAX_INCLUDE_DEPTH || self.scopes >= MAX_INCLUDES {
            let message = format!(
                "too many includes: at most {MAX_INCLUDE_DEPTH} below each other and {MAX_INCLUDES} in all are followed"
            );
            self.report.add(Problem::error(code::YAML_LIMIT, message).at(*first_span, "the limit is passed here"));
            return None;
        }

        let mut environment = scope.environment.clone();
        let listed = texts("env_file");
        if listed.is_empty() {
            let path = join(&folder, ".env");
            if self.source.is_file(&path) {
                self.env_files_below(&mut environment, &[path], None);
            }
        } else {
            let files: Vec<String> = listed
                .iter()
                .filter(|(path, _)| path != "/dev/null")
                .map(|(path, _)| join(&scope.folder, path))
                .collect();
            self.env_files_below(&mut environment, &files, listed.first().map(|(_, span)| *span));
        }

        self.scopes += 1;
        let id = self.scopes;
        let mut parsed = Vec::new();
        let mut chain = scope.chain.clone();
        for (path, span) in &paths {
            let path = join(&scope.folder, path);
            let documents = self.parse_file(&path, Some(*span))?;
            chain.push(path.clone());
            parsed.push((path, documents));
        }
        let inner = Scope { id, folder, environment, chain };
        let mut model = self.model(parsed, &inner)?;
        self.finish_model(&mut model, &inner);
        if let Value::Map(map) = &mut model.value {
            *map = std::mem::take(map).into_iter().filter(|(key, _)| SECTIONS.contains(&&**key)).collect::<Map>();
        }
        Some(model)
    }
}
