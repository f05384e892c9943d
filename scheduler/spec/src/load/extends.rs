//! `extends`: a service on top of another one, of the same document or of another file.

use super::{Loader, MAX_EXTENDED_NODES, MAX_EXTENDS_DEPTH, Scope};
use crate::check::{Check, Step, suggest};
use crate::code;
use crate::merge::{apply_marks, merge, strip_marks};
use crate::node::{Map, Node, Value};
use crate::paths::{Base, is_remote, join, parent};
use crate::problem::Problem;
use crate::schema::{Kind, Merge, SERVICE, STACK};
use crate::span::Span;
use std::collections::BTreeSet;

static SERVICE_KIND: Kind = Kind::Table(&SERVICE);

/// A file that services are taken from: raw, interpolated, and partly resolved already.
#[derive(Debug)]
pub(super) struct ExtendedFile {
    services: Node,
    /// Services whose paths are absolute and whose own `extends` are carried out.
    done: BTreeSet<String>,
}

/// A text and where it was written.
type Located = (String, Span);

/// One service on the way, to notice circles.
type Visit = (String, String, Span);

impl Loader<'_> {
    /// Carries out every `extends` of a document.
    pub(super) fn apply_extends(&mut self, document: &mut Node, path: &str, scope: &Scope) {
        let Some(services) = document.get_mut("services") else { return };
        let Some(map) = services.as_map() else { return };
        let names: Vec<String> = map
            .iter()
            .filter(|(_, entry)| entry.node.get("extends").is_some())
            .map(|(name, _)| name.to_string())
            .collect();
        if names.is_empty() {
            return;
        }
        let mut taken = std::mem::replace(services, Node::invalid(services.span));
        for name in names {
            self.resolve(&mut taken, &name, path, &scope.folder, scope, &mut Vec::new());
        }
        if let Some(services) = document.get_mut("services") {
            *services = taken;
        }
    }

    /// Carries out the `extends` of one service in place. `folder` is where the file's own `extends.file` count from.
    fn resolve(
        &mut self,
        services: &mut Node,
        name: &str,
        path: &str,
        folder: &str,
        scope: &Scope,
        visits: &mut Vec<Visit>,
    ) {
        let Some(service) = services.get_mut(name) else { return };
        let Some(entry) = service.as_map_mut().and_then(|map| map.shift_remove("extends")) else { return };
        let extends = entry.node;
        if let Some(at) = visits.iter().position(|(file, service, _)| file == path && service == name) {
            let circle: Vec<String> =
                visits[at..].iter().map(|(_, service, _)| service.clone()).chain([name.to_owned()]).collect();
            self.report.add(
                Problem::error(code::EXTENDS_CYCLE, format!("circular reference: {}", circle.join(" -> ")))
                    .at(extends.span, "closes the circle"),
            );
            return;
        }
        let Some((target, file)) = self.reference(&extends, name) else {
            if service.get("image").is_none() && service.get("build").is_none() {
                service.put("image", Node::invalid(extends.span));
            }
            return;
        };
        if visits.len() >= MAX_EXTENDS_DEPTH || self.extended_nodes > MAX_EXTENDED_NODES {
            let message = format!(
                "too much is extended: at most {MAX_EXTENDS_DEPTH} services on top of each other, and {MAX_EXTENDED_NODES} values"
            );
            self.report.add(Problem::error(code::YAML_LIMIT, message).at(extends.span, "the limit is passed here"));
            return;
        }
        visits.push((path.to_owned(), name.to_owned(), extends.span));
        let base = match &file {
            Some((file, span)) => self.base_of_file(&join(folder, file), *span, &target, name, scope, visits),
            None => {
                // The circle's own service still has its `extends` for the next visitor to see.
                if let Some(service) = services.get_mut(name) {
                    service.put("extends", extends.clone());
                }
                let base = self.base_of_document(services, &target, name, path, folder, scope, visits);
                if let Some(map) = services.get_mut(name).and_then(Node::as_map_mut) {
                    map.shift_remove("extends");
                }
                base
            }
        };
        visits.pop();
        let Some(service) = services.get_mut(name) else { return };
        let Some(mut base) = base else {
            // The image would have come from there; only the missing base is worth a message.
            if service.get("image").is_none() && service.get("build").is_none() {
                service.put("image", Node::invalid(extends.span));
            }
            return;
        };
        self.extended_nodes += base.count();
        apply_marks(&mut base, service);
        let own = std::mem::replace(service, Node::invalid(extends.span));
        let mark = own.mark;
        let mut check = Check::new(&mut self.report, &self.files);
        check.partial = true;
        check.path = vec![Step::Key("services".into()), Step::Key(name.into())];
        let mut merged = merge(&mut check, base, own, &SERVICE_KIND, Merge::ByKind);
        merged.mark = mark;
        if let Some(service) = services.get_mut(name) {
            *service = merged;
        }
    }

    /// The service and file that an `extends` names.
    fn reference(&mut self, extends: &Node, name: &str) -> Option<(Located, Option<Located>)> {
        let located = |node: &Node| node.as_text().map(|text| (text.to_owned(), node.span));
        match &extends.value {
            Value::Text(text) => Some(((text.to_string(), extends.span), None)),
            Value::Map(map) => {
                if let Some((key, entry)) = map.iter().find(|(key, _)| !matches!(&***key, "service" | "file")) {
                    self.report.add(
                        Problem::error(
                            code::UNKNOWN_KEY,
                            format!("unknown key `{key}` in `extends` of service `{name}`"),
                        )
                        .at(entry.key, "possible are `service` and `file`"),
                    );
                }
                let Some(service) = extends.get("service").and_then(located) else {
                    self.report.add(
                        Problem::error(
                            code::EXTENDS,
                            format!("extends.{name}.service is required: name the service to extend"),
                        )
                        .at(extends.span, "`service` is missing here"),
                    );
                    return None;
                };
                match extends.get("file") {
                    None => Some((service, None)),
                    Some(file) => match located(file) {
                        Some(file) => Some((service, Some(file))),
                        None => {
                            self.report.add(
                                Problem::error(
                                    code::WRONG_TYPE,
                                    format!("`extends.file` of service `{name}` must be a text"),
                                )
                                .at(file.span, format!("this is {}", file.kind_name())),
                            );
                            None
                        }
                    },
                }
            }
            Value::Invalid => None,
            _ => {
                self.report.add(
                    Problem::error(
                        code::WRONG_TYPE,
                        format!(
                            "`extends` of service `{name}` must be a text or a mapping, not {}",
                            extends.kind_name()
                        ),
                    )
                    .at(extends.span, "write `extends: {service: NAME, file: FILE}`"),
                );
                None
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the place in the file and the place in the recursion")]
    fn base_of_document(
        &mut self,
        services: &mut Node,
        (target, span): &(String, Span),
        name: &str,
        path: &str,
        folder: &str,
        scope: &Scope,
        visits: &mut Vec<Visit>,
    ) -> Option<Node> {
        if services.get(target).is_none() {
            self.not_found(services, target, *span, name, path);
            return None;
        }
        self.resolve(services, target, path, folder, scope, visits);
        let mut base = services.get(target)?.clone();
        if let Some(map) = base.as_map_mut() {
            map.shift_remove("extends");
        }
        strip_marks(&mut base);
        Some(base)
    }

    fn not_found(&mut self, services: &Node, target: &str, span: Span, name: &str, path: &str) {
        let names: Vec<&str> = services.entries().map(|(name, _)| &**name).collect();
        let label =
            suggest(target, names.iter().copied()).unwrap_or_else(|| format!("services there: {}", names.join(", ")));
        self.report.add(
            Problem::error(
                code::EXTENDS,
                format!(
                    "cannot extend service \"{name}\": service \"{target}\" not found in {}",
                    super::shown_path(path, &self.request.working_dir)
                ),
            )
            .at(span, label),
        );
    }

    fn base_of_file(
        &mut self,
        path: &str,
        file_span: Span,
        (target, span): &(String, Span),
        name: &str,
        scope: &Scope,
        visits: &mut Vec<Visit>,
    ) -> Option<Node> {
        if is_remote(self.files.text(file_span)) {
            self.report.add(
                Problem::error(code::REMOTE, format!("service `{name}` extends a remote file"))
                    .at(file_span, "not a local file"),
            );
            return None;
        }
        let key = (scope.id, path.to_owned());
        let mut file = match self.extended.remove(&key) {
            Some(file) => file,
            None => self.extended_file(path, file_span, scope)?,
        };
        let result = self.base_from(&mut file, path, target, *span, name, scope, visits);
        self.extended.insert(key, file);
        result
    }

    #[expect(clippy::too_many_arguments, reason = "the place in the file and the place in the recursion")]
    fn base_from(
        &mut self,
        file: &mut ExtendedFile,
        path: &str,
        target: &str,
        span: Span,
        name: &str,
        scope: &Scope,
        visits: &mut Vec<Visit>,
    ) -> Option<Node> {
        if file.services.get(target).is_none() {
            self.not_found(&file.services, target, span, name, path);
            return None;
        }
        if !file.done.contains(target) {
            let folder = parent(path);
            self.resolve(&mut file.services, target, path, folder, scope, visits);
            let service = file.services.get_mut(target)?;
            let mut check = Check::new(&mut self.report, &self.files);
            check.partial = true;
            check.path = vec![Step::Key("services".into()), Step::Key(target.into())];
            check.node(service, &SERVICE_KIND);
            let home = self.request.environment.get("HOME").map(String::as_str);
            Base { folder, home }.service(service);
            file.done.insert(target.to_owned());
        }
        let mut base = file.services.get(target)?.clone();
        strip_marks(&mut base);
        Some(base)
    }

    fn extended_file(&mut self, path: &str, asked: Span, scope: &Scope) -> Option<ExtendedFile> {
        let documents = self.parse_file(path, Some(asked))?;
        let mut whole: Option<Node> = None;
        for mut document in documents.into_iter().filter(|document| document.as_map().is_some()) {
            self.interpolate(&mut document, scope);
            if let Some(map) = document.as_map_mut() {
                map.retain(|key, _| &**key == "services");
            }
            whole = Some(match whole {
                None => document,
                Some(base) => {
                    let mut check = Check::new(&mut self.report, &self.files);
                    check.partial = true;
                    merge(&mut check, base, document, &STACK, Merge::ByKind)
                }
            });
        }
        let services =
            whole.and_then(|mut whole| whole.as_map_mut().and_then(|map: &mut Map| map.shift_remove("services")));
        match services.map(|entry| entry.node).filter(|node| node.as_map().is_some()) {
            Some(services) => Some(ExtendedFile { services, done: BTreeSet::new() }),
            None => {
                self.report.add(
                    Problem::error(
                        code::EXTENDS,
                        format!(
                            "{} has no `services` to extend from",
                            super::shown_path(path, &self.request.working_dir)
                        ),
                    )
                    .at(asked, "asked for here"),
                );
                None
            }
        }
    }
}
