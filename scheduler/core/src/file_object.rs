//! Secrets and configs that people make: making, changing and removing them, and what stacks that name them as external get.
//!
//! A changed one is the next version of itself, and services that use it get a specification with the new content in the same entry: they
//! are replaced as by an `up` whose file has changed, rolled where services are rolled.

use std::sync::Arc;

use orch_spec::model::{ContentBytes, FileObjectSpec, StackSpec};

use crate::command::{ChangeObject, Changes, Command, NewObject};
use crate::error::{Clash, Missing, Refusal, SpecFault};
use crate::identity::sha256_hex;
use crate::plan::{self, Moment, is_name};
use crate::state::{FileObject, ObjectKind, Revision, State};

fn check(kind: ObjectKind, name: &str, content: &ContentBytes) -> Result<(), Refusal> {
    let word = kind.as_str();
    if !is_name(name) {
        return Err(SpecFault::Name { kind: word, name: name.to_owned() }.into());
    }
    let (size, limit) = (content.0.len(), kind.limit());
    if size == 0 {
        return Err(SpecFault::Options(format!("{word} {name} would be empty")).into());
    }
    if size > limit {
        let text = format!("{word} {name} would have {size} bytes; at most {limit} are possible");
        return Err(SpecFault::Options(text).into());
    }
    Ok(())
}

impl State {
    pub(crate) fn create_object(&mut self, moment: Moment, request: &NewObject) -> Result<(), Refusal> {
        let NewObject { kind, name, content, labels } = request;
        check(*kind, name, content)?;
        if self.objects(*kind).contains_key(name) {
            return Err(Clash::Exists { kind: kind.as_str(), name: name.clone() }.into());
        }
        let object = FileObject {
            name: name.clone(),
            version: 1,
            digest: sha256_hex(&content.0),
            content: Arc::clone(content),
            labels: labels.clone(),
            created_at: moment.now_ms,
            updated_at: moment.now_ms,
        };
        self.objects_mut(*kind).insert(name.clone(), object);
        self.event(moment, kind.as_str(), "create", name, name, "", &[]);
        Ok(())
    }

    /// Changes one, and everything that uses it.
    pub(crate) fn change_object(
        &mut self,
        moment: Moment,
        command: &Command,
        request: &ChangeObject,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let ChangeObject { kind, name, content } = request;
        check(*kind, name, content)?;
        let (word, digest) = (kind.as_str(), sha256_hex(&content.0));
        let Some(object) = self.objects_mut(*kind).get_mut(name) else {
            return Err(Missing::Object { kind: word, name: name.clone() }.into());
        };
        if object.digest == digest {
            return Ok(());
        }
        (object.content, object.digest) = (Arc::clone(content), digest);
        (object.version, object.updated_at) = (object.version + 1, moment.now_ms);
        let version = object.version.to_string();
        self.event(moment, word, "update", name, name, "", &[("version", version)]);
        for (stack, service) in self.object_users(*kind, name) {
            // A stack that is on its way out needs nothing new any more.
            if let Ok(planned) = plan::plan_files(self, &stack, &service, moment) {
                self.execute(moment, command, planned.records, changes);
            }
        }
        Ok(())
    }

    pub(crate) fn remove_object(&mut self, moment: Moment, kind: ObjectKind, name: &str) -> Result<(), Refusal> {
        let word = kind.as_str();
        if !self.objects(kind).contains_key(name) {
            return Err(Missing::Object { kind: word, name: name.to_owned() }.into());
        }
        let users: Vec<String> =
            self.object_users(kind, name).iter().map(|(stack, service)| format!("service {stack}_{service}")).collect();
        if !users.is_empty() {
            return Err(Refusal::InUse { kind: word, name: name.to_owned(), users });
        }
        self.objects_mut(kind).remove(name);
        self.event(moment, word, "remove", name, name, "", &[]);
        Ok(())
    }
}

/// The stack with the contents of what people have made for it; what nobody has made stays without.
pub(crate) fn filled(state: &State, spec: &Arc<StackSpec>) -> Arc<StackSpec> {
    let wants = |object: &FileObjectSpec| object.external && object.content.is_none();
    if !spec.secrets.values().chain(spec.configs.values()).any(wants) {
        return Arc::clone(spec);
    }
    let mut filled = StackSpec::clone(spec);
    for (kind, objects) in [(ObjectKind::Secret, &mut filled.secrets), (ObjectKind::Config, &mut filled.configs)] {
        for object in objects.values_mut().filter(|object| wants(object)) {
            object.content = state.objects(kind).get(&object.name).map(|found| ContentBytes::clone(&found.content));
        }
    }
    Arc::new(filled)
}

/// A specification with what its secrets and configs are now. Its digest is the one that an `up` of the same file comes to.
pub(crate) fn refreshed(state: &State, applied: &Revision) -> Revision {
    let mut files = applied.files.clone();
    for file in files.iter_mut().filter(|file| file.external) {
        let kind = if file.secret { ObjectKind::Secret } else { ObjectKind::Config };
        if let Some(object) = state.objects(kind).get(&file.name) {
            file.content = Arc::clone(&object.content);
            file.digest.clone_from(&object.digest);
        }
    }
    let mut stack = StackSpec::default();
    let spec = &applied.spec;
    // One file for each grant, the secrets first.
    let grants = spec.secrets.iter().map(|grant| (grant, true)).chain(spec.configs.iter().map(|grant| (grant, false)));
    for ((grant, secret), file) in grants.zip(&files) {
        let content = Some(ContentBytes::clone(&file.content));
        let object = FileObjectSpec { name: file.name.clone(), content, ..FileObjectSpec::default() };
        let objects = if secret { &mut stack.secrets } else { &mut stack.configs };
        objects.insert(grant.source.clone(), object);
    }
    Revision { hash: spec.digest(&stack).0, files, ..applied.clone() }
}
