//! Checks a merged tree against the tables and brings it into canonical form on the way: short forms become long, texts
//! that say numbers become numbers, sizes and durations get their one spelling, sets lose their duplicates.
//!
//! What is wrong is reported and replaced by [`Value::Invalid`], so that later stages stay silent about it. Running it
//! over its own result changes nothing.

use crate::code;
use crate::node::{Entry, Map, Node, Value, VariableOrigin, float_text};
use crate::problem::{Problem, Report};
use crate::schema::{Kind, Parse, Short, Table, Unique};
use crate::span::{Files, Span};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// One step from the top of the tree.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Key(Arc<str>),
    Index(usize),
}

/// A walk over a tree.
pub(crate) struct Check<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) files: &'a Files,
    pub(crate) path: Vec<Step>,
    /// The tree is a part that something else is merged onto, so keys may be missing.
    pub(crate) partial: bool,
}

impl<'a> Check<'a> {
    pub(crate) fn new(report: &'a mut Report, files: &'a Files) -> Self {
        Self { report, files, path: Vec::new(), partial: false }
    }

    /// The value must be of this kind.
    pub(crate) fn node(&mut self, node: &mut Node, kind: &'static Kind) {
        if matches!(node.value, Value::Invalid) {
            return;
        }
        match kind {
            Kind::Any => {}
            Kind::Text(parse) => self.text(node, *parse),
            Kind::Scalar(parse) => self.scalar(node, *parse),
            Kind::Plain => self.key_value(node),
            Kind::Bool => self.boolean(node),
            Kind::BoolOrText => match node.value {
                Value::Bool(value) => node.value = Value::Text(value.to_string().into()),
                Value::Text(_) => {}
                _ => self.wrong(node, "a boolean or a text"),
            },
            Kind::Int(min, max) => self.integer(node, *min, *max),
            Kind::Number => self.number(node),
            Kind::Choice(choices) => self.choice(node, choices),
            Kind::FileMode => self.file_mode(node),
            Kind::Count => self.count(node),
            Kind::Command => self.command(node),
            Kind::KeyValues => self.key_values(node),
            Kind::Scalars => self.scalars(node),
            Kind::List(item, unique) => self.list(node, item, *unique),
            Kind::OneOrList(item, unique) => {
                let plain = matches!(item, Kind::Plain) && node.scalar_text().is_some();
                if plain || matches!(node.value, Value::Text(_)) {
                    let one = node.clone();
                    node.value = Value::List(vec![one]);
                }
                self.list(node, item, *unique);
            }
            Kind::Named(item) => self.named(node, item),
            Kind::Table(table) => self.table(node, table),
            Kind::Nullable(inner) => {
                if !node.is_null() {
                    self.node(node, inner);
                }
            }
            Kind::Short(short, long) => {
                self.lengthen(node, *short);
                self.node(node, long);
            }
        }
    }

    pub(crate) fn step<T>(&mut self, step: Step, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step);
        let result = inside(self);
        self.path.pop();
        result
    }

    /// Reports something about a value, with where its variables came from, and makes it invalid.
    pub(crate) fn refuse(&mut self, node: &mut Node, problem: Problem) {
        self.report.add(with_variables(problem, node));
        node.value = Value::Invalid;
    }

    pub(crate) fn bad(&mut self, node: &mut Node, why: impl AsRef<str>) {
        let problem = Problem::error(code::BAD_VALUE, format!("{}: {}", self.place(), why.as_ref())).at(node.span, "");
        self.refuse(node, problem);
    }

    pub(crate) fn wrong(&mut self, node: &mut Node, expected: &str) {
        let place = self.place();
        let problem = if node.is_null() {
            Problem::error(code::WRONG_TYPE, format!("{place} must be {expected}, but nothing is given"))
                .at(node.span, format!("{expected} belongs here"))
                .hint("give it a value or remove the key")
        } else {
            let problem =
                Problem::error(code::WRONG_TYPE, format!("{place} must be {expected}, not {}", node.kind_name()))
                    .at(node.span, format!("this is {}", node.kind_name()));
            let scalar = matches!(node.value, Value::Int(_) | Value::Float(_) | Value::Bool(_));
            let written = self.files.text(node.span);
            match &node.value {
                Value::Bool(false) if matches!(self.path.last(), Some(Step::Key(key)) if &**key == "restart") => {
                    problem.hint("write `restart: \"no\"` for \"never\"")
                }
                _ if scalar && expected.contains("text") && !written.is_empty() => {
                    problem.hint(format!("put it in quotes: `\"{written}\"`"))
                }
                Value::Text(text) if expected.starts_with("a list") => {
                    problem.hint(format!("write `[\"{}\"]`, or one line with `- ` for each entry", text.trim()))
                }
                _ => problem,
            }
        };
        self.refuse(node, problem);
    }

    /// What a message calls the place of the walk: "`ports[0].target` of service `web`".
    pub(crate) fn place(&self) -> String {
        place(&self.path)
    }

    fn text(&mut self, node: &mut Node, parse: Parse) {
        match &node.value {
            Value::Text(text) => {
                if let Some(parse) = parse {
                    match parse(text) {
                        Ok(canonical) if *canonical == **text => {}
                        Ok(canonical) => node.value = Value::Text(canonical.into()),
                        Err(why) => self.bad(node, why),
                    }
                }
            }
            Value::Bool(false) if self.files.text(node.span).eq_ignore_ascii_case("no") => {
                node.value = Value::Text("no".into());
            }
            Value::Int(number) if unit_missing(*number, parse) => {
                let why = format!("`{number}` has no unit; write for example `{number}s`");
                self.bad(node, why);
            }
            _ => self.wrong(node, "a text"),
        }
    }

    fn scalar(&mut self, node: &mut Node, parse: Parse) {
        let text = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Int(value) => value.to_string().into(),
            Value::Float(value) => float_text(*value).into(),
            _ => return self.wrong(node, "a text or a number"),
        };
        match parse.map_or_else(|| Ok(text.to_string()), |parse| parse(&text)) {
            Ok(canonical) => node.value = Value::Text(canonical.into()),
            Err(why) => self.bad(node, why),
        }
    }

    fn boolean(&mut self, node: &mut Node) {
        let Value::Text(text) = &node.value else {
            if !matches!(node.value, Value::Bool(_)) {
                self.wrong(node, "a boolean");
            }
            return;
        };
        let text = text.clone();
        let value = match text.to_ascii_lowercase().as_str() {
            "true" => true,
            "false" => false,
            "y" | "yes" | "on" => true,
            "n" | "no" | "off" => false,
            _ => {
                let why = if text.is_empty() {
                    "invalid boolean: the text is empty".to_owned()
                } else {
                    format!("invalid boolean: `{text}`; write `true` or `false`")
                };
                return self.bad(node, why);
            }
        };
        if text.len() != if value { 4 } else { 5 } {
            self.report.add(
                Problem::warning(code::BOOLEAN_WORD, format!("{}: `{text}` is read as `{value}`", self.place()))
                    .at(node.span, format!("write `{value}`")),
            );
        }
        node.value = Value::Bool(value);
    }

    fn integer(&mut self, node: &mut Node, min: i64, max: i64) {
        let value = match &node.value {
            Value::Int(value) => *value,
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => {
                // Whole and below 2^53, so the text is exact.
                format!("{value:.0}").parse().unwrap_or(0)
            }
            Value::Text(text) => match text.trim().parse() {
                Ok(value) => value,
                Err(_) if text.is_empty() => return self.bad(node, "a whole number is needed, but the text is empty"),
                Err(_) => {
                    let why = format!("`{text}` is not a whole number");
                    return self.bad(node, why);
                }
            },
            _ => return self.wrong(node, "a whole number"),
        };
        if value < min {
            return self.bad(node, format!("must be greater than or equal to {min}, but is {value}"));
        }
        if value > max {
            return self.bad(node, format!("must be at most {max}, but is {value}"));
        }
        node.value = Value::Int(value);
    }

    fn number(&mut self, node: &mut Node) {
        match &node.value {
            Value::Int(_) | Value::Float(_) => {}
            Value::Text(text) => match text.trim().parse::<f64>() {
                Ok(value) => node.value = Value::Float(value),
                Err(_) => {
                    let why = format!("`{text}` is not a number");
                    self.bad(node, why);
                }
            },
            _ => self.wrong(node, "a number"),
        }
    }

    fn choice(&mut self, node: &mut Node, choices: &'static [&'static str]) {
        let Value::Text(text) = &node.value else {
            return self.wrong(node, "a text");
        };
        if choices.contains(&&**text) {
            return;
        }
        let list: Vec<String> =
            choices.iter().filter(|choice| !choice.is_empty()).map(|choice| format!("`{choice}`")).collect();
        let mut problem = Problem::error(code::NOT_A_CHOICE, format!("{} cannot be `{text}`", self.place()))
            .note(format!("possible: {}", list.join(", ")));
        problem = problem.at(node.span, suggest(text, choices.iter().copied()).unwrap_or_default());
        self.refuse(node, problem);
    }

    fn file_mode(&mut self, node: &mut Node) {
        let mode = match &node.value {
            Value::Int(mode) => Some(*mode),
            Value::Text(text) => {
                let digits = text.trim_start_matches("0o");
                i64::from_str_radix(digits, 8).ok()
            }
            _ => return self.wrong(node, "a number or a text"),
        };
        match mode.filter(|mode| (0..=0o7777).contains(mode)) {
            Some(mode) => node.value = Value::Int(mode),
            None => {
                let why = format!("`{}` is no file mode; write it in octal: `0440`", self.files.text(node.span));
                self.bad(node, why);
            }
        }
    }

    fn count(&mut self, node: &mut Node) {
        match &node.value {
            Value::Text(text) if &**text == "all" => node.value = Value::Int(-1),
            Value::Text(text) if text.parse::<i64>().is_err() => {
                let why = format!("`{text}` is no count; write a number or `all`");
                self.bad(node, why);
            }
            _ => self.integer(node, -1, i64::MAX),
        }
    }

    fn command(&mut self, node: &mut Node) {
        match &mut node.value {
            Value::Null => {}
            Value::Text(text) => match crate::words::split(text) {
                Ok(words) => {
                    let span = node.span;
                    node.value = Value::List(words.into_iter().map(|word| Node::text(word, span)).collect());
                }
                Err(why) => self.bad(node, why),
            },
            Value::List(_) => {
                let mut items = std::mem::take(node.as_list_mut().expect("the value was matched as a list"));
                for (index, item) in items.iter_mut().enumerate() {
                    self.step(Step::Index(index), |check| check.text(item, None));
                }
                node.value = Value::List(items);
            }
            _ => self.wrong(node, "a text or a list of texts"),
        }
    }

    fn key_values(&mut self, node: &mut Node) {
        match std::mem::replace(&mut node.value, Value::Invalid) {
            Value::Map(mut map) => {
                for (key, entry) in &mut map {
                    self.step(Step::Key(key.clone()), |check| check.key_value(&mut entry.node));
                }
                node.value = Value::Map(map);
            }
            Value::List(items) => {
                let mut map = Map::new();
                for (index, mut item) in items.into_iter().enumerate() {
                    self.path.push(Step::Index(index));
                    if matches!(item.value, Value::Text(_)) {
                        self.assignment(&mut map, &item);
                    } else if !matches!(item.value, Value::Invalid) {
                        self.wrong(&mut item, "a text `KEY=VALUE`");
                    }
                    self.path.pop();
                }
                node.value = Value::Map(map);
            }
            other => {
                node.value = other;
                self.wrong(node, "a mapping or a list of `KEY=VALUE`");
            }
        }
    }

    fn assignment(&mut self, map: &mut Map, item: &Node) {
        let text = item.as_text().unwrap_or_default();
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text, None),
        };
        if key.trim_end() != key {
            let trimmed = key.trim_end();
            let problem = Problem::error(
                code::BAD_VALUE,
                format!("{}: variable `{trimmed}` is declared with a trailing space", self.place()),
            )
            .at(item.span, "a blank before the `=`")
            .hint(format!("write `{trimmed}={}`", value.unwrap_or_default()));
            self.report.add(problem);
            return;
        }
        let value = value.map_or(Value::Null, |value| Value::Text(value.into()));
        map.shift_remove(key);
        map.insert(key.into(), Entry { key: item.span, node: item.with(value) });
    }

    fn key_value(&mut self, node: &mut Node) {
        if let Some(text) = node.scalar_text() {
            node.value = Value::Text(text.into());
        } else if !matches!(node.value, Value::Null | Value::Invalid) {
            self.wrong(node, "a text, a number, a boolean or nothing");
        }
    }

    fn scalars(&mut self, node: &mut Node) {
        let Value::Map(map) = &mut node.value else {
            return self.wrong(node, "a mapping");
        };
        let mut map = std::mem::take(map);
        for (key, entry) in &mut map {
            self.step(Step::Key(key.clone()), |check| check.key_value(&mut entry.node));
        }
        node.value = Value::Map(map);
    }

    fn list(&mut self, node: &mut Node, item: &'static Kind, unique: Unique) {
        let Value::List(items) = &mut node.value else {
            return self.wrong(node, "a list");
        };
        let mut items = std::mem::take(items);
        for (index, entry) in items.iter_mut().enumerate() {
            self.step(Step::Index(index), |check| check.node(entry, item));
        }
        node.value = Value::List(make_unique(items, unique));
    }

    fn named(&mut self, node: &mut Node, item: &'static Kind) {
        let Value::Map(map) = &mut node.value else {
            return self.wrong(node, "a mapping");
        };
        let mut map = std::mem::take(map);
        let top = self.path.len() == 1;
        for (key, entry) in &mut map {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            if top && (key.is_empty() || !key.chars().all(legal)) {
                let section = self.place();
                self.report.add(
                    Problem::error(code::BAD_NAME, format!("`{key}` cannot be a name in {section}"))
                        .at(entry.key, "letters, digits, `.`, `_` and `-` are possible"),
                );
            }
            self.step(Step::Key(key.clone()), |check| check.node(&mut entry.node, item));
        }
        node.value = Value::Map(map);
    }

    fn table(&mut self, node: &mut Node, table: &'static Table) {
        let Value::Map(map) = &mut node.value else {
            return self.wrong(node, "a mapping");
        };
        let mut map = std::mem::take(map);
        let mut unknown = Vec::new();
        for (key, entry) in &mut map {
            match table.field(key) {
                Some(field) => self.step(Step::Key(key.clone()), |check| check.node(&mut entry.node, &field.kind)),
                None if table.extensions && key.starts_with("x-") => {}
                None => unknown.push(key.clone()),
            }
        }
        for key in unknown {
            if let Some(entry) = map.shift_remove(&key) {
                self.unknown_key(&key, entry.key, table);
                // What was probably meant counts as given, so that nothing else complains of its absence.
                if let Some(meant) = closest(&key, table.fields.iter().map(|field| field.name))
                    && !map.contains_key(meant)
                {
                    map.insert(meant.into(), Entry { key: entry.key, node: Node::invalid(entry.node.span) });
                }
            }
        }
        if !self.partial {
            for field in table.fields.iter().filter(|field| field.required) {
                if !map.contains_key(field.name) {
                    self.report.add(
                        Problem::error(
                            code::MISSING_KEY,
                            format!("{}: missing property `{}`", self.place(), field.name),
                        )
                        .at(node.span, format!("`{}` is needed here", field.name)),
                    );
                    map.insert(field.name.into(), Entry { key: node.span, node: Node::invalid(node.span) });
                }
            }
        }
        node.value = Value::Map(map);
    }

    fn unknown_key(&mut self, key: &str, span: Span, table: &'static Table) {
        let place = match self.path.as_slice() {
            [] => "at the top level".to_owned(),
            _ => format!("in {}", self.place()),
        };
        let known = table.fields.iter().map(|field| field.name);
        let mut problem = Problem::error(code::UNKNOWN_KEY, format!("unknown key `{key}` {place}"));
        problem = match suggest(key, known.clone()) {
            Some(suggestion) => problem.at(span, suggestion),
            None => problem.at(span, "the Compose specification has no such key here"),
        };
        if table.fields.len() <= 8 {
            problem = problem.note(format!("possible keys: {}", known.collect::<Vec<_>>().join(", ")));
        }
        if table.extensions {
            problem = problem.note("keys starting with `x-` are passed through");
        }
        if let Some(home) = misplaced(key, &self.path) {
            problem = problem.hint(home);
        }
        self.report.add(problem);
    }

    fn lengthen(&mut self, node: &mut Node, short: Short) {
        crate::short::lengthen(self, node, short);
    }
}

/// "`ports[0].target` of service `web`".
pub(crate) fn place(path: &[Step]) -> String {
    let sections = [
        ("services", "service"),
        ("networks", "network"),
        ("volumes", "volume"),
        ("secrets", "secret"),
        ("configs", "config"),
        ("models", "model"),
    ];
    let (owner, rest) = match path {
        [Step::Key(section), Step::Key(name), rest @ ..] => {
            match sections.iter().find(|(plural, _)| *plural == &**section) {
                Some((_, singular)) => (format!("{singular} `{name}`"), rest),
                None => (String::new(), path),
            }
        }
        _ => (String::new(), path),
    };
    let mut inner = String::new();
    for step in rest {
        match step {
            Step::Key(key) if inner.is_empty() => inner.push_str(key),
            Step::Key(key) => {
                inner.push('.');
                inner.push_str(key);
            }
            Step::Index(index) => {
                let _ = write!(inner, "[{index}]");
            }
        }
    }
    match (inner.is_empty(), owner.is_empty()) {
        (true, true) => "the stack file".into(),
        (true, false) => owner,
        (false, true) => format!("`{inner}`"),
        (false, false) => format!("`{inner}` of {owner}"),
    }
}

/// Adds to a problem about a value where the variables in it came from.
pub(crate) fn with_variables(mut problem: Problem, node: &Node) -> Problem {
    for variable in node.variables.iter().flat_map(|list| list.iter()) {
        let name = &variable.name;
        problem = match variable.origin {
            VariableOrigin::File(span) => problem.at(span, format!("`{name}` is set here")),
            VariableOrigin::Process => problem.note(format!("`{name}` comes from the environment")),
            VariableOrigin::Unset => problem.note(format!("`{name}` is not set")),
        };
    }
    problem
}

/// "did you mean `image`?" when one of the candidates is close enough.
pub fn suggest<'c>(found: &str, candidates: impl Iterator<Item = &'c str>) -> Option<String> {
    closest(found, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// A number that only lacks the `s` of a duration.
fn unit_missing(number: i64, parse: Parse) -> bool {
    parse.is_some_and(|parse| parse(&number.to_string()).is_err() && parse(&format!("{number}s")).is_ok())
}

/// The candidate that differs by few letters, if there is one.
fn closest<'c>(found: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let lower = found.to_lowercase().replace('-', "_");
    candidates
        .filter(|candidate| !candidate.is_empty())
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.replace('-', "_").to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(lower.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Where a key that is unknown here belongs.
fn misplaced(key: &str, path: &[Step]) -> Option<String> {
    let service = matches!(path, [Step::Key(section), Step::Key(_)] if &**section == "services");
    let top = path.is_empty();
    match key {
        "replicas" | "update_config" | "placement" | "resources" | "restart_policy" if service => {
            Some(format!("`{key}` belongs under `deploy`"))
        }
        "limits" | "reservations" if service => Some(format!("`{key}` belongs under `deploy.resources`")),
        "interval" | "timeout" | "retries" | "start_period" | "test" if service => {
            Some(format!("`{key}` belongs under `healthcheck`"))
        }
        "context" | "dockerfile" | "args" if service => Some(format!("`{key}` belongs under `build`")),
        "memory" | "mem" if service => {
            Some("the memory limit is `mem_limit`, or `deploy.resources.limits.memory`".into())
        }
        "env" if service => Some("variables are set by `environment` or read by `env_file`".into()),
        "cmd" if service => Some("the key is called `command`".into()),
        "image" | "ports" | "command" | "environment" | "build" if top => {
            Some(format!("`{key}` belongs to a service: indent it under `services`"))
        }
        _ => None,
    }
}

fn make_unique(items: Vec<Node>, unique: Unique) -> Vec<Node> {
    let key_of = |node: &Node| match unique {
        Unique::No => None,
        Unique::Whole => node.scalar_text(),
        Unique::By(key) => key(node),
    };
    if matches!(unique, Unique::No) {
        return items;
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<Node> = Vec::with_capacity(items.len());
    for item in items {
        match key_of(&item) {
            Some(key) => match seen.get(&key) {
                Some(index) => kept[*index] = item,
                None => {
                    seen.insert(key, kept.len());
                    kept.push(item);
                }
            },
            None => kept.push(item),
        }
    }
    kept
}
